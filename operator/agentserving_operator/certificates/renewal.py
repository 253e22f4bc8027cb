"""A CA for a cluster and the certificates that it signs: which are due, and how they are issued. Time is an argument.

The entry point is `renewed`: existing certificates -> required certificates. A CA that is due gets a successor, which
is first only announced: from then on `ca.crt` contains both. Once every pod had time to read that, the successor signs;
the old CA stays trusted until it expires. A CA's certificate says when it was announced, so no other state is stored.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agentserving_operator.certificates.values import LEAF_LIFE, Authority, Certificates, Pair, is_uri

# Long, because a new CA restarts etcd members, and clients outside the cluster have to copy it.
CA_LIFE = datetime.timedelta(days=3650)
# kubelet updates a mounted Secret within two minutes; a day leaves time for nodes that are unreachable for a while.
ANNOUNCED_FOR = datetime.timedelta(days=1)
# Certificates are valid from a little before their issue, because clocks differ.
BACKDATED = datetime.timedelta(minutes=5)
# X.520: ub-common-name.
MAX_COMMON_NAME = 64


def certificate_of(pair: Pair) -> x509.Certificate:
    """The parsed certificate. Raises ValueError when it is invalid."""
    return x509.load_pem_x509_certificate(pair.cert)


def signer_of(authority: Authority, now: datetime.datetime) -> Pair:
    """The CA that signs now: the new one once all pods trust it, until then the old one."""
    announced = certificate_of(authority.ca).not_valid_before_utc + BACKDATED
    return authority.old if authority.old is not None and now < announced + ANNOUNCED_FOR else authority.ca


def due(cert: x509.Certificate, now: datetime.datetime) -> bool:
    """Whether to renew: two thirds of its life are over, or it is not valid yet because a clock was wrong."""
    begun, ends = cert.not_valid_before_utc, cert.not_valid_after_utc
    return now < begun or now >= begun + (ends - begun) * 2 / 3


def renewed(
    name: str,
    authority: Authority | None,
    leaves: Mapping[str, Pair | None],
    hosts: Mapping[str, Sequence[str]],
    now: datetime.datetime,
) -> Certificates:
    """The required certificates. Those that are still good are returned unchanged.

    `name` of the cluster appears in the CA's subject. `hosts` are the names of each leaf: hosts, IP addresses, and the
    URI of an identity. A leaf without a host or an address is a client certificate.
    """
    authority = _renewed_authority(name, authority, now)
    signer = signer_of(authority, now)
    found = {}
    for leaf, names in hosts.items():
        old = leaves.get(leaf)
        found[leaf] = old if old is not None and _is_good(old, signer, names, now) else _leaf(leaf, signer, names, now)
    return Certificates(authority, found)


def _renewed_authority(name: str, authority: Authority | None, now: datetime.datetime) -> Authority:
    if authority is None or not (_is_pair(authority.ca) and now < certificate_of(authority.ca).not_valid_after_utc):
        return Authority(_ca(name, now))
    if due(certificate_of(authority.ca), now):
        return Authority(_ca(name, now), authority.ca)
    old = authority.old
    if old is not None and not (_is_pair(old) and now < certificate_of(old).not_valid_after_utc):
        return Authority(authority.ca)
    return authority


def _is_pair(pair: Pair) -> bool:
    try:
        key = serialization.load_pem_private_key(pair.key, None)
        return key.public_key() == certificate_of(pair).public_key()
    except (ValueError, TypeError):
        return False


def _is_good(leaf: Pair, signer: Pair, hosts: Sequence[str], now: datetime.datetime) -> bool:
    if not _is_pair(leaf):
        return False
    cert = certificate_of(leaf)
    try:
        cert.verify_directly_issued_by(certificate_of(signer))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return not due(cert, now) and _hosts_of(cert) == list(hosts)


def _hosts_of(cert: x509.Certificate) -> list[str]:
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(each.value) for each in names]


def _ca(name: str, now: datetime.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    # With the time, because a CA and its successor must differ in name for chains to be found.
    subject = _subject(f"agentserving {name} {now:%Y-%m-%d %H:%M:%S}"[-MAX_COMMON_NAME:])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(subject, subject, key, now, now + CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _signed(builder.add_extension(usage, critical=True), key, key)


def _leaf(leaf: str, signer: Pair, hosts: Sequence[str], now: datetime.datetime) -> Pair:
    issuer, key = certificate_of(signer), ec.generate_private_key(ec.SECP256R1())
    signing = serialization.load_pem_private_key(signer.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    serves = any(not is_uri(host) for host in hosts)
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])]
    ends = min(now + LEAF_LIFE, issuer.not_valid_after_utc)
    builder = _builder(_subject(f"agentserving {leaf}"[:MAX_COMMON_NAME]), issuer.subject, key, now, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return _signed(builder.add_extension(identifier, critical=False), key, signing)


def _general_name(host: str) -> x509.GeneralName:
    if is_uri(host):
        return x509.UniformResourceIdentifier(host)
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:  # fmt: skip
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=crl_sign, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:  # fmt: skip
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - BACKDATED)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.not_valid_after(ends).add_extension(identifier, critical=False)


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signing: ec.EllipticCurvePrivateKey
) -> Pair:
    cert = builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8
    return Pair(cert, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
