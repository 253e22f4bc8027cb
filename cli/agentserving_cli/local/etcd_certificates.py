"""Certificates of a one-machine cluster's etcd: other users of the machine cannot read it or write keys into it.

New at each start. The CA's own key is not stored, so nothing can be signed later.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# Not renewed: longer than a cluster runs.
LIFE = datetime.timedelta(days=3650)
_CLOCK_SKEW = datetime.timedelta(hours=1)
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EtcdCertificates:
    """Files in one directory: a CA, and one certificate for etcd, its peer port and its client, the control plane."""

    home: Path

    @property
    def ca(self) -> Path:
        return self.home / "ca.crt"

    @property
    def cert(self) -> Path:
        return self.home / "etcd.crt"

    @property
    def key(self) -> Path:
        return self.home / "etcd.key"

    def context(self) -> ssl.SSLContext:
        """TLS context of a control plane or a probe, which presents the certificate. OSError."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context

    def make(self, write: Callable[[Path, bytes], None], now: datetime.datetime) -> None:
        """Makes and writes all of them. OSError."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        issuer = _name("agentserving up: CA of etcd")
        usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True}
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        ca = (
            _unsigned(issuer, issuer, authority.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        )
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        leaf = (
            _unsigned(_name("agentserving up: etcd"), issuer, own.public_key(), now)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(signer, critical=False)
        )
        write(self.ca, _pem(ca.sign(authority, hashes.SHA256())))
        write(self.cert, _pem(leaf.sign(authority, hashes.SHA256())))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write(self.key, own.private_bytes(serialization.Encoding.PEM, pkcs8, plain))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + LIFE)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
