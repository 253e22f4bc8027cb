"""A CA and certificates with or without a role's URI, in memory."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SERVER_NAME = "control-plane.test"


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class RoleCertificates:
    """Signed by one CA, valid for an hour."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        cert = self._builder("test CA", self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.ca = self._pem(cert.sign(self._key, hashes.SHA256()))

    def _builder(self, subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name("test CA"))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
            now + datetime.timedelta(hours=1)
        )

    @staticmethod
    def _pem(cert: x509.Certificate) -> bytes:
        return cert.public_bytes(serialization.Encoding.PEM)

    def leaf(self, *uris: str) -> tuple[bytes, bytes]:
        """(key, certificate) as PEM, with these URIs and the server's names."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(SERVER_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names += [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = self._builder("leaf", key).add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private, self._pem(cert)

    def write(self, directory: Path, *uris: str) -> dict[str, str]:
        """Files of a server, by the names of its flags."""
        key, cert = self.leaf(*uris)
        files = {"tls_ca": self.ca, "tls_cert": cert, "tls_key": key}
        for name, data in files.items():
            (directory / name).write_bytes(data)
        return {name: str(directory / name) for name in files}

    def credentials(self, *uris: str, certificate: bool = True) -> grpc.ChannelCredentials:
        """Of a client, with a certificate that has these URIs, or without one."""
        key, cert = self.leaf(*uris) if certificate else (None, None)
        return grpc.ssl_channel_credentials(self.ca, key, cert)
