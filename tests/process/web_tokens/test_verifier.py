"""A JWT opens when its issuer signed it, for us, for now, and names a tenant; nothing else does, whatever it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving_process.web_tokens import verifier as verifier_module
from agentserving_process.web_tokens.jwks import read_jwks
from agentserving_process.web_tokens.verifier import (
    MAX_TOKEN_CHARS,
    TokenRefusal,
    TokenRefusedError,
    TokenRules,
    TokenVerifier,
    signed_by,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_issuer import (
    AUDIENCE,
    EC_KEY,
    ED_KEY,
    ISSUER,
    OTHER_RSA_KEY,
    RSA_KEY,
    claims,
    forged,
    hmac_by_public_key,
    jwk,
    jwks,
    part,
    token,
)

NOW = 1_800_000_000.0
ALGORITHMS = ("RS256", "ES256", "EdDSA")
JWKS = read_jwks(jwks(jwk(RSA_KEY, "rsa-1"), jwk(EC_KEY, "ec-1"), jwk(ED_KEY, "ed-1")), ALGORITHMS)


def rules(**fields: Any) -> TokenRules:
    given = {
        "issuer": ISSUER, "audiences": (AUDIENCE,), "algorithms": ALGORITHMS, "tenant_claim": "tenant",
        "leeway_s": 30.0, **fields,
    }  # fmt: skip
    return TokenRules(**given)


def verifier(**fields: Any) -> TokenVerifier:
    return TokenVerifier(rules(**fields), JWKS)


def good(**said: Any) -> str:
    return token(**{"now_unix_s": NOW, **said})


def refusal(text: str, now: float = NOW, made: TokenVerifier | None = None) -> TokenRefusedError:
    with pytest.raises(TokenRefusedError) as caught:
        (made or verifier()).verify(text, now)
    # Nothing of a token is repeated to whoever sent it.
    assert len(text) < 20 or text not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("key", "kid", "alg"), [(RSA_KEY, "rsa-1", "RS256"), (EC_KEY, "ec-1", "ES256"), (ED_KEY, "ed-1", "EdDSA")]
)
def test_a_token_of_the_issuer_names_its_tenant_and_its_subject(key: Any, kid: str, alg: str) -> None:
    found = verifier().verify(good(key=key, kid=kid, alg=alg, aud=["other", AUDIENCE]), NOW)
    assert (found.tenant, found.credential) == ("acme", f"jwt:{kid}:ci-bot")
    assert found.until_unix_s == NOW + 630


def test_a_subject_cannot_look_like_another_keys() -> None:
    found = verifier().verify(good(sub="a:b\r\nx: y é", kid="rsa-1"), NOW)
    assert found.credential == "jwt:rsa-1:a%3Ab%0D%0Ax%3A%20y%20%C3%A9"
    assert signed_by(found.credential, JWKS)
    assert not signed_by(found.credential, read_jwks(jwks(), ALGORITHMS))
    assert signed_by("k3v9x0qa", read_jwks(jwks(), ALGORITHMS))


HEADER = {"alg": "RS256", "kid": "rsa-1"}
NONE = [forged({"alg": alg, "kid": "rsa-1"}, claims(now_unix_s=NOW)) for alg in ("none", "None", "NONE", "nOnE", "")]
ATTACKS = {
    **{f"alg none {index}": (text, "ALGORITHM_NOT_ALLOWED") for index, text in enumerate(NONE)},
    "no alg": (forged({"kid": "rsa-1"}, claims()), "ALGORITHM_NOT_ALLOWED"),
    "alg is a list": (forged({"alg": ["RS256"], "kid": "rsa-1"}, claims()), "ALGORITHM_NOT_ALLOWED"),
    "alg is an object": (forged({"alg": {}, "kid": "rsa-1"}, claims()), "ALGORITHM_NOT_ALLOWED"),
    "hmac by the public key": (hmac_by_public_key(), "ALGORITHM_NOT_ALLOWED"),
    "hmac by the stripped public key": (hmac_by_public_key(form="stripped"), "ALGORITHM_NOT_ALLOWED"),
    "hmac by the public key in DER": (hmac_by_public_key(form="der"), "ALGORITHM_NOT_ALLOWED"),
    "an algorithm that is not configured": (good(alg="PS256"), "ALGORITHM_NOT_ALLOWED"),
    "another kind of key": (good(kid="ec-1"), "ALGORITHM_NOT_ALLOWED"),
    "no signature": (good().rpartition(".")[0] + ".", "BAD_SIGNATURE"),
    "another's signature": (good(key=OTHER_RSA_KEY), "BAD_SIGNATURE"),
    "another payload": (".".join([good().split(".")[0], part(claims(tenant="b")), good().split(".")[2]]),
                        "BAD_SIGNATURE"),
    "unknown kid": (good(kid="rsa-2"), "UNKNOWN_SIGNING_KEY"),
    "no kid": (good(kid=None), "UNKNOWN_SIGNING_KEY"),
    "kid up a directory": (good(kid="../../../../dev/null"), "UNKNOWN_SIGNING_KEY"),
    "kid as a file": (good(kid="/etc/passwd"), "UNKNOWN_SIGNING_KEY"),
    "kid as SQL": (good(kid="x' UNION SELECT 'secret"), "UNKNOWN_SIGNING_KEY"),
    "kid is a list": (forged({"alg": "RS256", "kid": ["rsa-1"]}, claims()), "BAD_TOKEN"),
    "a key of its own": (good(key=OTHER_RSA_KEY, kid="x", header={"jwk": jwk(OTHER_RSA_KEY, "x")}),
                         "UNKNOWN_SIGNING_KEY"),
    "a URL of keys": (good(key=OTHER_RSA_KEY, header={"jku": "http://127.0.0.1:1/jwks"}), "BAD_SIGNATURE"),
    "a certificate of its own": (good(key=OTHER_RSA_KEY, header={"x5u": "file:///etc/passwd"}), "BAD_SIGNATURE"),
    "critical extension": (good(header={"crit": ["x"], "x": 1}), "BAD_TOKEN"),
    "unencoded payload": (forged({**HEADER, "b64": False, "crit": ["b64"]}, claims()), "BAD_TOKEN"),
    "wrong issuer": (good(iss="https://evil.example"), "WRONG_ISSUER"),
    "issuer with a slash": (good(iss=ISSUER + "/"), "WRONG_ISSUER"),
    "no issuer": (good(iss=None), "BAD_TOKEN"),
    "wrong audience": (good(aud="another-service"), "WRONG_AUDIENCE"),
    "part of an audience": (good(aud=[AUDIENCE[:-1], AUDIENCE + "x"]), "WRONG_AUDIENCE"),
    "no audience": (good(aud=None), "WRONG_AUDIENCE"),
    "empty audience": (good(aud=[]), "WRONG_AUDIENCE"),
    "expired": (good(now_unix_s=NOW - 700), "TOKEN_EXPIRED"),
    "no expiry": (good(exp=None), "BAD_TOKEN"),
    "expiry as text": (good(exp="9999999999"), "BAD_TOKEN"),
    "expiry as true": (good(exp=True), "BAD_TOKEN"),
    "expiry in infinity": (good(exp=float("inf")), "BAD_TOKEN"),
    "expiry is no number": (good(exp=float("nan")), "BAD_TOKEN"),
    "not yet valid": (good(nbf=int(NOW) + 60), "TOKEN_NOT_YET_VALID"),
    "issued in the future": (good(iat=int(NOW) + 60), "TOKEN_NOT_YET_VALID"),
    "no subject": (good(sub=None), "BAD_TOKEN"),
    "empty subject": (good(sub=""), "BAD_TOKEN"),
    "long subject": (good(sub="x" * 256), "BAD_TOKEN"),
    "no tenant": (good(tenant=None), "NO_TENANT"),
    "tenants": (good(tenant=["acme"]), "NO_TENANT"),
    "a tenant that is no name": (good(tenant="a\0b"), "NO_TENANT"),
    "a tenant up a directory": (good(tenant="../acme"), "NO_TENANT"),
    "too long": (good(sub="x" * MAX_TOKEN_CHARS), "BAD_TOKEN"),
    "claims are a list": (forged(HEADER, [1], b"x"), "BAD_SIGNATURE"),
    "deep header": (part(b"[" * 3000) + ".e30.", "BAD_TOKEN"),
    "header is no JSON": (part(b"{") + ".e30.", "BAD_TOKEN"),
    "not base64": ("!!!.e30.e30", "BAD_TOKEN"),
    "padding": (good() + "=", "BAD_TOKEN"),
    "a newline behind it": (good() + "\n", "BAD_TOKEN"),
    "two parts": ("e30.e30", "BAD_TOKEN"),
    "five parts": ("e30.e30.e30.e30.e30", "BAD_TOKEN"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_and_mistakes_are_refused(name: str) -> None:
    text, reason = ATTACKS[name]
    made = verifier()
    for _ in range(2):
        assert refusal(text, made=made).reason == reason
    assert made.remembered == 0


def test_the_library_is_not_asked_to_verify_with_what_a_token_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by our own rules: a later version of the library may think otherwise."""
    asked: list[Any] = []
    monkeypatch.setattr(verifier_module.jwt.PyJWT, "decode", lambda *given, **named: asked.append(given))
    for text in (*NONE, hmac_by_public_key(), good(alg="PS256"), good(kid="ec-1"), good(kid="rsa-2")):
        refusal(text)
    assert asked == []


def test_clocks_may_differ_by_the_leeway() -> None:
    made, text = verifier(), good(exp=int(NOW), nbf=int(NOW) - 100)
    assert made.verify(text, NOW + 29.9).tenant == "acme"
    assert refusal(text, NOW + 30, verifier()).reason is TokenRefusal.TOKEN_EXPIRED
    early = good(nbf=int(NOW) + 30, iat=int(NOW) + 30)
    assert made.verify(early, NOW).tenant == "acme"
    assert refusal(early, NOW - 1, verifier()).reason is TokenRefusal.TOKEN_NOT_YET_VALID


def test_a_remembered_token_ends_when_it_expires() -> None:
    made, text = verifier(), good()
    assert made.verify(text, NOW) is made.verify(text, NOW + 629)
    error = refusal(text, NOW + 630, made)
    assert (error.reason, error.credential) == (TokenRefusal.TOKEN_EXPIRED, "jwt:rsa-1:ci-bot")
    assert made.remembered == 0


def test_a_remembered_token_ends_with_its_key() -> None:
    made, of_rsa, of_ec = verifier(), good(), good(key=EC_KEY, kid="ec-1", alg="ES256")
    made.verify(of_rsa, NOW)
    made.verify(of_ec, NOW)
    made.replace(read_jwks(jwks(jwk(EC_KEY, "ec-1"), jwk(OTHER_RSA_KEY, "rsa-2")), ALGORITHMS))
    assert refusal(of_rsa, made=made).reason is TokenRefusal.UNKNOWN_SIGNING_KEY
    assert made.verify(of_ec, NOW).tenant == "acme"
    # A new key under an old name.
    made.replace(read_jwks(jwks(jwk(OTHER_RSA_KEY, "rsa-1")), ALGORITHMS))
    assert refusal(of_rsa, made=made).reason is TokenRefusal.BAD_SIGNATURE
    made.replace(read_jwks(jwks(), ALGORITHMS))
    assert refusal(of_ec, made=made).reason is TokenRefusal.UNKNOWN_SIGNING_KEY


def test_few_tokens_are_remembered_and_never_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_module, "MAX_REMEMBERED", 3)
    made = verifier()
    texts = [good(sub=f"s{index}") for index in range(5)]
    for text in texts:
        made.verify(text, NOW)
        assert made.remembered <= 3
    assert texts[-1] not in repr(vars(made))
    assert made.verify(texts[0], NOW).credential == "jwt:rsa-1:s0"


def test_a_tenant_may_be_a_nested_claim() -> None:
    made = verifier(tenant_claim="/kubernetes.io/name~1space")
    text = good(**{"kubernetes.io": {"name/space": "team-a"}})
    assert made.verify(text, NOW).tenant == "team-a"
    for nested in ({"name": {"space": "b"}}, {}, "team-a", None):
        assert refusal(good(**{"kubernetes.io": nested}), made=made).reason is TokenRefusal.NO_TENANT
    # A name with slashes, as OpenID Connect issuers have them, is a name.
    named = verifier(tenant_claim="https://a.example/tenant")
    assert named.verify(good(**{"https://a.example/tenant": "b"}), NOW).tenant == "b"


GOOD = good()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=0x2FF))
def test_a_token_with_any_character_changed_opens_nothing(at: int, other: str) -> None:
    changed = GOOD[:at] + other + GOOD[at + 1 :]
    if changed != GOOD:
        refusal(changed)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=400) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
def test_no_text_makes_it_fail(text: str) -> None:
    refusal(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x"]), _JSON, max_size=5), _JSON)
def test_no_header_makes_it_fail(header: dict[str, Any], payload: Any) -> None:
    refusal(forged(header, payload, b"x" * 256))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "tenant", "jti"]), _JSON))
def test_no_claims_make_it_fail(said: dict[str, Any]) -> None:
    """Also signed ones: an issuer's mistake must not be ours."""
    head = part({"alg": "EdDSA", "kid": "ed-1"}) + "." + part(json.dumps({**claims(now_unix_s=NOW), **said}).encode())
    text = f"{head}.{part(ED_KEY.sign(head.encode()))}"
    try:
        found = verifier().verify(text, NOW)
    except TokenRefusedError:
        return
    assert found.tenant == said.get("tenant", "acme")
    assert found.until_unix_s > NOW
