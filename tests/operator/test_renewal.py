"""Certificates that are due are renewed, good ones stay, and a CA's successor signs only once all pods trust it."""

from __future__ import annotations

import datetime

import pytest
from agentserving_operator.certificates.renewal import ANNOUNCED_FOR, CA_LIFE, certificate_of, due, renewed
from agentserving_operator.certificates.values import LEAF_LIFE, Authority, Certificates, Pair
from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
ADMIN = "spiffe://agentserving/ns/demo/admin"
HOSTS: dict[str, list[str]] = {
    "control-plane": ["demo-control-plane.ns.svc", "localhost", "spiffe://agentserving/ns/demo/control-plane"],
    "client": [],
    "admin": [ADMIN],
}


def step(before: Certificates | None, now: datetime.datetime, hosts: dict[str, list[str]] = HOSTS) -> Certificates:
    if before is None:
        return renewed("demo", None, {}, hosts, now)
    return renewed("demo", before.authority, before.leaves, hosts, now)


def is_accepted(certificates: Certificates, trusted: bytes, now: datetime.datetime) -> bool:
    """Verified by another implementation than the issuing one: the server's leaf with its name, the client's alone."""
    store = verification.Store(x509.load_pem_x509_certificates(trusted))
    builder = verification.PolicyBuilder().store(store).time(now)
    server = builder.build_server_verifier(x509.DNSName("demo-control-plane.ns.svc"))
    try:
        server.verify(certificate_of(certificates.leaves["control-plane"]), [])
        for leaf in certificates.leaves.values():
            issuers = [
                ca for ca in x509.load_pem_x509_certificates(trusted) if ca.subject == certificate_of(leaf).issuer
            ]
            assert issuers
            certificate_of(leaf).verify_directly_issued_by(issuers[0])
            assert certificate_of(leaf).not_valid_before_utc <= now < certificate_of(leaf).not_valid_after_utc
    except verification.VerificationError:
        return False
    return True


def test_leaves_have_their_names_purposes_and_a_bounded_life() -> None:
    made = step(None, NOW)
    server, client, admin = (certificate_of(made.leaves[name]) for name in ("control-plane", "client", "admin"))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == HOSTS["control-plane"][:2]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == HOSTS["control-plane"][2:]
    uris = admin.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uris.get_values_for_type(x509.UniformResourceIdentifier) == [ADMIN]
    for leaf, wanted in (
        (server, {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
        (client, {ExtendedKeyUsageOID.CLIENT_AUTH}),
        # A URI is no host: nobody can be a server with it.
        (admin, {ExtendedKeyUsageOID.CLIENT_AUTH}),
    ):
        assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == wanted
        assert leaf.not_valid_after_utc == NOW + LEAF_LIFE
        # Other clocks may be behind.
        assert leaf.not_valid_before_utc < NOW
    with pytest.raises(x509.ExtensionNotFound):
        client.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert is_accepted(made, made.authority.trusted, NOW)


def test_good_certificates_are_kept_for_two_thirds_of_their_life() -> None:
    made = step(None, NOW)
    assert step(made, NOW) == made
    assert step(made, NOW + LEAF_LIFE * 2 / 3 - DAY) == made
    later = step(made, NOW + LEAF_LIFE * 2 / 3)
    assert later.authority == made.authority
    assert all(later.leaves[name] != made.leaves[name] for name in HOSTS)


@given(st.floats(0, 1))
@settings(deadline=None)
def test_due_from_two_thirds_on_and_before_the_beginning(share: float) -> None:
    cert = certificate_of(MADE.leaves["client"])
    begun, ends = cert.not_valid_before_utc, cert.not_valid_after_utc
    at = begun + (ends - begun) * share
    assert due(cert, at) == (at >= begun + (ends - begun) * 2 / 3)
    assert due(cert, begun - DAY)


MADE = step(None, NOW)


@pytest.mark.parametrize(
    "spoilt",
    [
        None,
        Pair(b"", b""),
        Pair(MADE.leaves["control-plane"].cert, MADE.leaves["client"].key),
        Pair(MADE.leaves["control-plane"].cert, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        step(None, NOW).leaves["control-plane"],
    ],
    ids=["missing", "empty", "another's key", "garbage", "another CA's"],
)
def test_an_unusable_leaf_is_issued_again_and_the_others_stay(spoilt: Pair | None) -> None:
    found = renewed("demo", MADE.authority, {**MADE.leaves, "control-plane": spoilt}, HOSTS, NOW)
    assert found.authority == MADE.authority
    assert found.leaves["client"] == MADE.leaves["client"]
    assert found.leaves["control-plane"] not in (spoilt, MADE.leaves["control-plane"])
    assert is_accepted(found, found.authority.trusted, NOW)


def test_an_engine_with_a_long_name_has_a_certificate() -> None:
    name = f"engine/{'x' * 51}"
    made = step(None, NOW, {**HOSTS, name: ["spiffe://agentserving/ns/demo/sidecar/" + "x" * 51]})
    assert step(made, NOW, {**HOSTS, name: ["spiffe://agentserving/ns/demo/sidecar/" + "x" * 51]}) == made


def test_changed_names_cause_a_new_leaf() -> None:
    found = step(MADE, NOW, {**HOSTS, "control-plane": ["demo-control-plane.ns.svc"]})
    assert found.leaves["control-plane"] != MADE.leaves["control-plane"]
    assert found.leaves["client"] == MADE.leaves["client"]


@pytest.mark.parametrize("broken", [Pair(b"", b""), Pair(MADE.authority.ca.cert, MADE.leaves["client"].key)])
def test_a_ca_that_cannot_sign_is_replaced(broken: Pair) -> None:
    found = renewed("demo", Authority(broken), MADE.leaves, HOSTS, NOW)
    assert found.authority.old is None
    assert is_accepted(found, found.authority.trusted, NOW)


def test_a_new_ca_is_announced_before_it_signs() -> None:
    at = NOW + CA_LIFE * 2 / 3
    before = step(MADE, at - DAY)
    assert before.authority == MADE.authority
    announced = step(before, at)
    assert announced.authority.old == MADE.authority.ca
    assert announced.leaves == before.leaves
    # It does not sign yet, even though a leaf is due.
    last = at + ANNOUNCED_FOR - datetime.timedelta(seconds=1)
    assert is_accepted(renewed("demo", announced.authority, {}, HOSTS, last), MADE.authority.trusted, last)
    signed = step(announced, at + ANNOUNCED_FOR)
    assert signed.authority == announced.authority
    assert not is_accepted(signed, MADE.authority.trusted, at + ANNOUNCED_FOR)
    assert is_accepted(signed, announced.authority.trusted, at + ANNOUNCED_FOR)
    # The old one is dropped when it expires.
    assert step(signed, NOW + CA_LIFE).authority.old is None


@given(st.lists(st.floats(0, 0.99), min_size=1, max_size=12))
@settings(deadline=None, max_examples=30)
def test_pods_that_read_certificates_within_the_last_day_trust_each_other(days: list[float]) -> None:
    """Across a change of the CA, in both directions."""
    now = NOW + CA_LIFE * 2 / 3 - DAY
    made = step(MADE, now)
    for share in days:
        now += ANNOUNCED_FOR * share
        later = step(made, now)
        assert is_accepted(later, made.authority.trusted, now)
        assert is_accepted(made, later.authority.trusted, now)
        made = later
