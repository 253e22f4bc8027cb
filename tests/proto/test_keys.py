"""Keys of clients and identities of parts: nothing but the whole text of a live key is accepted, whatever is sent."""

from __future__ import annotations

import pytest
from agentserving.contract.identity import NAMED_ROLES, Identity, Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import (
    KeyRefusal,
    KeyRefusedError,
    KeyRow,
    KeySet,
    NewKey,
    decode_row,
    decode_rows,
    encode_row,
    encode_rows,
    from_authorization,
    hash_of,
    new_key,
    parse,
)
from hypothesis import example, given
from hypothesis import strategies as st

NOW = 1_000_000.0
ids = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=20).filter(lambda text: text.strip("."))


def a_key(**values: object) -> NewKey:
    return new_key(Role.CLIENT, "research", now_unix_s=NOW, **values)  # type: ignore[arg-type]


@st.composite
def keys(draw: st.DrawFn) -> NewKey:
    role = draw(st.sampled_from([Role.CLIENT, Role.ADMIN, Role.GATEWAY, Role.SIDECAR]))
    tenant = draw(ids) if role is Role.CLIENT else ""
    size_seed = draw(st.binary(min_size=40, max_size=40))
    sources = iter([size_seed[:8], size_seed[8:]])
    lifetime = draw(st.sampled_from([0, 60, 86_400]))
    return new_key(
        role, tenant, draw(st.text(max_size=20)), now_unix_s=NOW, lifetime_s=lifetime, random=lambda n: next(sources)
    )


def refusal(key_set: KeySet, text: str, now: float = NOW) -> KeyRefusal | None:
    try:
        key_set.verify(text, now)
    except KeyRefusedError as error:
        return error.reason
    return None


@given(keys())
def test_a_key_is_found_by_its_text(key: NewKey) -> None:
    assert parse(key.text) == key.row.key_id
    assert KeySet([key.row]).verify(key.text, NOW) == key.row
    assert key.row.caller().role is key.row.role
    assert key.row.caller().tenant == key.row.tenant


@given(keys())
def test_a_row_survives_its_forms_and_carries_no_secret(key: NewKey) -> None:
    assert decode_row(encode_row(key.row)) == key.row
    assert decode_rows(encode_rows([key.row, key.row])) == [key.row, key.row]
    secret = key.text[len("as_12345678_") :]
    assert secret.encode() not in encode_row(key.row)


@given(keys(), st.text(max_size=80))
@example(a_key(), "")
@example(a_key(), "as_\N{LATIN SMALL LETTER LONG S}bcdefgh_" + "A" * 43)
def test_other_text_is_refused(key: NewKey, text: str) -> None:
    expected = KeyRefusal.UNKNOWN_KEY if text else KeyRefusal.NO_CREDENTIAL
    if text != key.text:
        assert refusal(KeySet([key.row]), text) is expected


@given(keys(), st.integers(0, 54), st.characters(codec="utf-8"))
def test_a_key_with_one_other_character_is_refused(key: NewKey, place: int, character: str) -> None:
    changed = key.text[:place] + character + key.text[place + 1 :]
    if changed != key.text:
        assert refusal(KeySet([key.row]), changed) is KeyRefusal.UNKNOWN_KEY


@given(keys(), st.sampled_from([" ", "\n", "\0", "=", "_"]), st.booleans())
def test_a_key_with_something_around_it_is_refused(key: NewKey, extra: str, before: bool) -> None:
    assert refusal(KeySet([key.row]), extra + key.text if before else key.text + extra) is KeyRefusal.UNKNOWN_KEY


@given(st.integers(1, 10**9), st.floats(0, 2e9))
def test_a_key_is_valid_until_its_expiry_and_not_after(lifetime_s: int, later_s: float) -> None:
    key = a_key(lifetime_s=lifetime_s)
    expected = KeyRefusal.KEY_EXPIRED if NOW + later_s >= int(NOW + lifetime_s) else None
    assert refusal(KeySet([key.row]), key.text, NOW + later_s) is expected


def test_revocation_takes_precedence_over_expiry_and_ends_a_key_at_once() -> None:
    key = a_key(lifetime_s=60)
    key_set = KeySet([key.row])
    key_set.put(KeyRow(**{name: getattr(key.row, name) for name in key.row.__struct_fields__} | {"revoked_unix_s": 1}))
    assert refusal(key_set, key.text, NOW + 100) is KeyRefusal.KEY_REVOKED
    key_set.remove(key.row.key_id)
    assert refusal(key_set, key.text) is KeyRefusal.UNKNOWN_KEY


def test_who_has_only_a_keys_id_learns_nothing_about_it() -> None:
    key = a_key(lifetime_s=1)
    guess = f"as_{key.row.key_id}_{'A' * 43}"
    assert refusal(KeySet([key.row]), guess, NOW + 100) is KeyRefusal.UNKNOWN_KEY


def test_keys_differ() -> None:
    drawn = [a_key() for _ in range(200)]
    assert len({key.text for key in drawn}) == len({key.row.key_id for key in drawn}) == 200


def test_a_row_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="tenant"):
        new_key(Role.CLIENT, now_unix_s=NOW)
    with pytest.raises(ValueError, match="tenant"):
        new_key(Role.ADMIN, "research", now_unix_s=NOW)
    with pytest.raises(ValueError, match="sha256"):
        KeyRow(key_id="abcdefgh", sha256=b"short", role=Role.ADMIN)
    with pytest.raises(ValueError, match="role"):
        decode_rows(b'[{"key_id":"abcdefgh","sha256":"","role":"king"}]')
    with pytest.raises(ValueError, match="sha256"):
        decode_row(b'{"key_id":"abcdefgh","sha256":"AAAA","role":"admin"}')


@pytest.mark.parametrize(
    ("value", "text"),
    [("Bearer x", "x"), ("bearer  x ", "x"), ("Basic x", ""), ("", ""), ("Bearer", ""), ("x", "")],
)
def test_a_bearer_header_is_read(value: str, text: str) -> None:
    assert from_authorization(value) == text


def test_a_sidecars_token_names_its_engine_and_a_clients_name_is_no_identity() -> None:
    sidecar = KeyRow(key_id="abcdefgh", sha256=hash_of("x"), role=Role.SIDECAR, name="e1")
    client = KeyRow(key_id="abcdefgh", sha256=hash_of("x"), role=Role.CLIENT, tenant=Tenant("t"), name="e1")
    assert (sidecar.caller().name, client.caller().name) == ("e1", "")


# -- identities ----------------------------------------------------------------------------------------------------

parts = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789._-", min_size=1, max_size=63).filter(
    lambda text: text not in (".", "..")
)
certified = st.sampled_from(sorted(set(Role) - {Role.CLIENT, Role.ANONYMOUS}))


@given(parts, parts, certified, parts)
def test_an_identity_survives_its_uri(namespace: str, cluster: str, role: Role, name: str) -> None:
    identity = Identity(namespace=namespace, cluster=cluster, role=role, name=name if role in NAMED_ROLES else "")
    assert Identity.of_uri(identity.uri) == identity
    assert identity.caller().credential == identity.uri


@pytest.mark.parametrize(
    "uri",
    [
        "", "spiffe://agentserving/", "spiffe://agentserving/ns/c", "spiffe://other/ns/c/gateway",
        "https://agentserving/ns/c/gateway", "spiffe://agentserving/ns/c/gateway/", "spiffe://agentserving/ns/c/gateway/x",
        "spiffe://agentserving/ns/c/sidecar", "spiffe://agentserving/ns/c/sidecar/", "spiffe://agentserving/ns/c/king",
        "spiffe://agentserving/ns/c/sidecar/a/b", "spiffe://agentserving/ns/../gateway", "spiffe://agentserving//c/gateway",
        "spiffe://agentserving/ns/c/client", "spiffe://agentserving/ns/c/anonymous", "spiffe://agentserving/ns/c/Gateway",
        "spiffe://agentserving/ns/c/gateway?x", "spiffe://agentserving/ns/c/sidecar/e%31", "SPIFFE://agentserving/ns/c/gateway",
    ],
)  # fmt: skip
def test_another_uri_is_no_identity(uri: str) -> None:
    assert Identity.of_uri(uri) is None


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    found = Identity.of_uri("spiffe://agentserving/" + text)
    assert found is None or found.uri == "spiffe://agentserving/" + text


def test_a_client_or_a_nameless_sidecar_gets_no_certificate() -> None:
    for role, name in ((Role.CLIENT, ""), (Role.SIDECAR, ""), (Role.GATEWAY, "x"), (Role.ENGINE, "a/b")):
        with pytest.raises(ValueError, match=role.value if name != "a/b" else "a/b"):
            _ = Identity(namespace="ns", cluster="c", role=role, name=name).uri
