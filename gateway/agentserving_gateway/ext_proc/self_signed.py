"""A certificate that signs itself, as the Gateway API Inference Extension's own endpoint picker has one.

Gateways encrypt their stream to an endpoint picker without verifying its certificate unless they are configured to.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "agentserving-endpoint-picker"
# Not renewed: longer than a process runs.
LIFE = datetime.timedelta(days=3650)
_CLOCK_SKEW = datetime.timedelta(hours=1)


def self_signed(now: datetime.datetime) -> tuple[bytes, bytes]:
    """(private key, certificate), both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    return pem, certificate.public_bytes(serialization.Encoding.PEM)
