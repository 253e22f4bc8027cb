"""The file of an issuer's keys: what is taken from it, and how a new one comes into force."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from agentserving_process.supervision import CannotStartError
from agentserving_process.web_tokens.jwks import MAX_BYTES, read_jwks
from agentserving_process.web_tokens.verifier import TokenRefusedError
from agentserving_process.web_tokens.watch import JwksWatch, TokenOptions
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.eventually import eventually_async
from support.token_issuer import AUDIENCE, EC_KEY, ED_KEY, ISSUER, RSA_KEY, jwk, jwks, replace, token

# Issue 15: a change is in force everywhere within this time.
IN_FORCE_S = 5.0
ALGORITHMS = ("RS256", "ES256", "EdDSA")
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
OFF_CURVE = ec.generate_private_key(ec.SECP256K1())


def test_keys_are_taken_with_the_algorithms_that_fit_them() -> None:
    found = read_jwks(jwks(jwk(RSA_KEY, "r"), jwk(EC_KEY, "e", alg="ES256"), jwk(ED_KEY, "d")), (*ALGORITHMS, "PS256"))
    assert {kid: set(key.algorithms) for kid, key in found.keys.items()} == {
        "r": {"RS256", "PS256"}, "e": {"ES256"}, "d": {"EdDSA"},
    }  # fmt: skip
    assert found.skipped == ()
    assert set(read_jwks(jwks(jwk(RSA_KEY, "r", alg="PS256")), (*ALGORITHMS, "PS256")).keys["r"].algorithms) == {
        "PS256"
    }


PRIVATE = {**jwk(RSA_KEY, "p"), "d": "AQAB"}


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({"kty": "oct", "kid": "x", "k": "AAAA"}, "kty 'oct'"),
        (jwk(SMALL, "x"), "1024 bits"),
        (jwk(RSA_KEY, ""), "kid: "),
        (jwk(RSA_KEY, "x" * 200), "kid: "),
        ({k: v for k, v in jwk(RSA_KEY, "x").items() if k != "kid"}, "kid: "),
        (jwk(RSA_KEY, "x", use="enc"), "not a key for signatures"),
        (jwk(RSA_KEY, "x", key_ops=["encrypt"]), "not a key for signatures"),
        (PRIVATE, "private key"),
        (jwk(RSA_KEY, "x", alg="RS512"), "none is permitted"),
        (jwk(RSA_KEY, "x", alg="HS256"), "none is permitted"),
        (jwk(OFF_CURVE, "x"), "x: "),
        (jwk(RSA_KEY, "x", n="!!"), "not a valid key"),
        (jwk(RSA_KEY, "x", e=None), "not a valid key"),
        (jwk(EC_KEY, "x", crv="P-1"), "not a valid key"),
        (jwk(EC_KEY, "x", x="AAAA"), "not a valid key"),
        (jwk(RSA_KEY, "good"), "a second key"),
        ("text", "not an object"),
    ],
)
def test_a_key_that_cannot_be_used_costs_no_other_key(key: Any, words: str) -> None:
    found = read_jwks(jwks(jwk(RSA_KEY, "good"), key), ALGORITHMS)
    assert list(found.keys) == ["good"]
    (why,) = found.skipped
    assert why.startswith("keys[1]: ")
    assert words in why


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b"[" * 100_000, b"\xff", jwks(*[{}] * 101), b" " * (MAX_BYTES + 1)],
)  # fmt: skip
def test_what_is_no_set_of_keys_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|JWK Set|at most"):
        read_jwks(data, ALGORITHMS)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["kid", "kty", "n", "e", "x", "y", "crv", "use", "alg", "key_ops", "d", "k"]),
        st.none() | st.integers() | st.text(max_size=12) | st.lists(st.text(max_size=3), max_size=2)
        | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "X25519", "AQAB", "sig"]),
    )
)  # fmt: skip
def test_no_key_makes_reading_fail(key: dict[str, Any]) -> None:
    found = read_jwks(jwks(key, jwk(EC_KEY, "good")), ALGORITHMS)
    assert found.keys["good"].algorithms == {"ES256"}


def options(file: Path, **fields: Any) -> TokenOptions:
    given = {"jwt_issuer": ISSUER, "jwt_audience": (AUDIENCE,), "jwt_jwks_file": str(file), **fields}
    return TokenOptions(**given)


def watched(file: Path) -> JwksWatch:
    made = options(file).watch()
    assert made is not None
    return made


def opens(watch: JwksWatch, text: str) -> bool:
    try:
        watch.verifier.verify(text, time.time())
    except TokenRefusedError:
        return False
    return True


async def test_a_new_file_is_in_force_within_five_seconds(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(jwk(RSA_KEY, "rsa-1")))
    watch, told = watched(file), []
    watch.on_change.add(lambda found: told.append(sorted(found.keys)))
    task = asyncio.create_task(watch.run())
    old, new = token(), token(key=EC_KEY, kid="ec-1", alg="ES256")
    try:
        assert (opens(watch, old), opens(watch, new)) == (True, False)
        # Rotation: both, then the new one alone.
        replace(file, jwks(jwk(RSA_KEY, "rsa-1"), jwk(EC_KEY, "ec-1")))
        await eventually_async(lambda: opens(watch, new), deadline_s=IN_FORCE_S)
        assert opens(watch, old)
        replace(file, jwks(jwk(EC_KEY, "ec-1")))
        await eventually_async(lambda: not opens(watch, old), deadline_s=IN_FORCE_S)
        assert opens(watch, new)
        assert told == [["ec-1", "rsa-1"], ["ec-1"]]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_secret_is_replaced_by_its_link(tmp_path: Path) -> None:
    """As kubelet does it: ..data is a link to a directory, and is replaced whole."""
    for name, key in (("old", jwk(RSA_KEY, "rsa-1")), ("new", jwk(EC_KEY, "ec-1"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwks.json").write_bytes(jwks(key))
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "jwks.json").symlink_to("..data/jwks.json")
    watch = watched(tmp_path / "jwks.json")
    (tmp_path / "..data_tmp").symlink_to("new")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    watch.look()
    assert list(watch.verifier.jwks.keys) == ["ec-1"]


@pytest.mark.parametrize("data", [b"", b"{", b'{"keys": 1}', None])
def test_a_file_that_became_unreadable_changes_nothing_until_it_is_readable(
    tmp_path: Path, data: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(jwk(RSA_KEY, "rsa-1")))
    watch = watched(file)
    if data is None:
        file.unlink()
    else:
        replace(file, data)
    for _ in range(3):
        watch.look()
    assert opens(watch, token())
    # Once, not each second.
    assert capsys.readouterr().out.count("cannot read the JWK Set") == 1
    replace(file, jwks(jwk(EC_KEY, "ec-1")))
    watch.look()
    assert not opens(watch, token())


def test_a_set_without_keys_ends_all(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(jwk(RSA_KEY, "rsa-1")))
    watch = watched(file)
    replace(file, jwks())
    watch.look()
    assert not opens(watch, token())


def test_a_file_that_cannot_be_read_at_the_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotStartError, match=r"--jwt-jwks-file: .*jwks\.json: No such file"):
        watched(tmp_path / "jwks.json")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"jwt_audience": ()}, "--jwt-audience"),
        ({"jwt_jwks_file": ""}, "--jwt-jwks-file"),
        ({"jwt_issuer": ""}, "--jwt-issuer is needed"),
        ({"jwt_algorithms": ("HS256",)}, "'HS256' is not one of"),
        ({"jwt_algorithms": ("none",)}, "'none' is not one of"),
        ({"jwt_algorithms": ()}, "at least one"),
        ({"jwt_tenant_claim": ""}, "--jwt-tenant-claim"),
    ],
)
def test_flags_that_would_let_anyone_in_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(Path("jwks.json"), **fields)


def test_without_an_issuer_no_tokens_are_accepted() -> None:
    assert TokenOptions().watch() is None
