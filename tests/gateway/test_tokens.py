"""JWTs of an organisation's issuer open the front as keys do: for their tenant, until they expire or their key goes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from agentserving.contract.ticket import verify
from agentserving_gateway import metrics
from agentserving_process.web_tokens.jwks import read_jwks
from agentserving_process.web_tokens.verifier import TokenRules, TokenVerifier
from gateway.gateway_rig import KEYS, Rig, answer_json, rig, until, value
from gateway.played_keys import PlayedKeys
from structlog.testing import capture_logs
from support.token_issuer import AUDIENCE, EC_KEY, ISSUER, RSA_KEY, forged, hmac_by_public_key, jwk, jwks, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = "x-agentserving-program-id: p\r\n"
ALGORITHMS = ("RS256", "ES256")
JWKS = jwks(jwk(RSA_KEY, "rsa-1"), jwk(EC_KEY, "ec-1"))


def tokens() -> TokenVerifier:
    rules = TokenRules(
        issuer=ISSUER, audiences=(AUDIENCE,), algorithms=ALGORITHMS, tenant_claim="tenant", leeway_s=0.0
    )  # fmt: skip
    return TokenVerifier(rules, read_jwks(JWKS, ALGORITHMS))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[tuple[Rig, PlayedKeys, TokenVerifier]]:
    keys, verifier = PlayedKeys(), tokens()
    async with rig(answer_json, answer_json, keys=keys, tokens=verifier) as made:
        await until(lambda: made.picker.authenticator.is_ready)
        yield made, keys, verifier


@pytest.fixture
def made(opened: tuple[Rig, PlayedKeys, TokenVerifier]) -> Rig:
    opened[0].play(answer_json, answer_json)
    opened[2].replace(read_jwks(JWKS, ALGORITHMS))
    return opened[0]


def bearer(text: str) -> str:
    return f"authorization: Bearer {text}\r\n"


def api_key(text: str) -> str:
    return f"x-api-key: {text}\r\n"


def placeholder(text: str) -> str:
    """Some SDKs send both headers."""
    return bearer("none") + api_key(text)


def beside(text: str) -> str:
    return bearer(text) + api_key("none")


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def served(made: Rig) -> list[bytes]:
    return [request for engine in made.engines for request in engine.requests]


@pytest.mark.parametrize("header", [bearer, api_key, placeholder, beside])
@pytest.mark.parametrize("by_body", [False, True])
async def test_a_token_opens_for_its_tenant_and_never_reaches_an_engine(made: Rig, header: Any, by_body: bool) -> None:
    text = token(tenant="research", sub="ci@example.com")
    claim = "x-agentserving-tenant: other\r\nx-agentserving-credential: other\r\n"
    given = header(text) + claim + ("" if by_body else PROGRAM)
    answer = await made.post(body=b'{"prompt_cache_key": "p", "tenant": "other"}', headers=given)
    assert status(answer) == 200
    ((engine, request),) = [(engine, each) for engine in made.engines for each in engine.requests]
    assert text.split(".")[2].encode() not in request
    assert value(request, "authorization") == value(request, "x-api-key") == ""
    ticket = verify(value(request, "x-session-id"), KEYS, engine_id=engine.name, now_unix_s=0).ticket
    assert ticket.tenant == value(request, "x-agentserving-tenant") == "research"
    # What Envoy's access log records as `key`.
    assert value(request, "x-agentserving-credential") == "jwt:rsa-1:ci@example.com"


async def test_lists_of_models_open_to_tokens(made: Rig) -> None:
    text = token()
    request = "GET /v1/models HTTP/1.1\r\nhost: x\r\n" + bearer(text) + "\r\n"
    assert status(await made.send(request.encode())) == 200
    assert len(served(made)) == 2
    assert all(text.encode() not in each for each in served(made))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/models"])
@pytest.mark.parametrize(
    ("text_of", "words"),
    [
        (lambda: token(aud="another"), "aud: it must contain 'agentserving'"),
        (lambda: token(iss="https://evil.example"), "iss: it must be 'https://issuer.example'"),
        (lambda: token(now_unix_s=time.time() - 7200), "exp: it has expired"),
        (lambda: token(kid="rsa-2"), "kid: it names no key"),
        (lambda: token(tenant=None), "tenant: this claim must name its tenant"),
        (hmac_by_public_key, "alg: it must be signed with RS256, ES256"),
        (lambda: forged({"alg": "none"}, {}), "alg: it must be signed with RS256, ES256"),
        (lambda: token(sub="x" * 9000), "characters, of at most"),
        (lambda: "a.b.c", "this JWT is not accepted"),
    ],
)
async def test_a_refusal_says_what_is_wrong_in_the_callers_dialect(
    made: Rig, path: str, text_of: Callable[[], str], words: str
) -> None:
    # Tokens are made when they are used: the suite takes longer than they are valid.
    text = text_of()
    method = "GET" if path == "/v1/models" else "POST"
    length, content = ("content-length: 2\r\n", "{}") if method == "POST" else ("", "")
    answer = await made.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{length}{bearer(text)}\r\n{content}".encode())
    assert status(answer) == 401
    assert value(answer, "www-authenticate") == 'Bearer realm="agentserving", error="invalid_token"'
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert words in error["message"]
    assert text not in answer.decode()
    if path.startswith("/v1/messages"):
        assert error["type"] == "authentication_error"
    else:
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_token")
    assert served(made) == []


async def test_a_refusal_without_a_credential_mentions_tokens(made: Rig) -> None:
    answer = await made.post()
    assert status(answer) == 401
    assert "a JWT of your organisation's issuer" in answer.decode()


async def test_a_token_that_expires_between_two_calls_opens_only_the_first(made: Rig) -> None:
    ends = int(time.time()) + 2
    text = token(exp=ends)
    assert status(await made.post(headers=bearer(text) + PROGRAM)) == 200
    await until(lambda: time.time() >= ends)
    answer = await made.post(headers=bearer(text) + PROGRAM)
    assert status(answer) == 401
    assert "exp: it has expired" in answer.decode()


async def test_a_key_that_is_withdrawn_ends_its_tokens_at_once(
    made: Rig, opened: tuple[Rig, PlayedKeys, TokenVerifier]
) -> None:
    old, new = token(), token(key=EC_KEY, kid="ec-1", alg="ES256")
    for text in (old, new):
        assert status(await made.post(headers=bearer(text) + PROGRAM)) == 200
    opened[2].replace(read_jwks(jwks(jwk(EC_KEY, "ec-1")), ALGORITHMS))
    assert status(await made.post(headers=bearer(old) + PROGRAM)) == 401
    assert status(await made.post(headers=bearer(new) + PROGRAM)) == 200


async def test_keys_open_as_before(made: Rig, opened: tuple[Rig, PlayedKeys, TokenVerifier]) -> None:
    text = opened[1].make("mine")
    watch = made.picker.keys
    assert watch is not None
    await until(lambda: (found := watch.current()) is not None and found.get(text[3:11]) is not None)
    assert status(await made.post(headers=bearer(text) + PROGRAM)) == 200
    assert status(await made.post(headers=bearer("as_00000000_" + "A" * 43) + PROGRAM)) == 401


async def test_tokens_open_while_no_keys_are_known_and_refusals_are_counted() -> None:
    """The keys come from a leader, the issuer's from a file."""
    async with rig(answer_json, keys=PlayedKeys(silent=True), tokens=tokens()) as made:
        assert status(await made.post(headers=bearer(token()) + PROGRAM)) == 200
        assert status(await made.post(headers=bearer("as_00000000_" + "A" * 43) + PROGRAM)) == 503
        counted = metrics.UNAUTHENTICATED.labels("WRONG_AUDIENCE")
        before = counted._value.get()
        assert status(await made.post(headers=bearer(token(aud="x")) + PROGRAM)) == 401
        assert counted._value.get() == before + 1


async def test_without_an_issuer_a_token_is_an_unknown_key(tmp_path: Path) -> None:
    keys = PlayedKeys()
    async with rig(answer_json, keys=keys) as made:
        await until(lambda: made.picker.authenticator.is_ready)
        answer = await made.post(headers=bearer(token()) + PROGRAM)
        assert status(answer) == 401
        assert "is not a client's of this cluster" in answer.decode()


async def test_refused_tokens_are_in_the_audit_log_with_their_address_and_never_with_their_text() -> None:
    expired = token(sub="ci@example.com", now_unix_s=time.time() - 7200)
    strange = forged({"alg": "none"}, {"sub": "x"})
    async with rig(answer_json, keys=PlayedKeys(), tokens=tokens()) as made:
        await until(lambda: made.picker.authenticator.is_ready)
        with capture_logs() as logs:
            for text in (expired, strange):
                assert status(await made.post(headers=bearer(text) + PROGRAM)) == 401
                listed = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{bearer(text)}\r\n"
                assert status(await made.send(listed.encode())) == 401
    lines = [line for line in logs if line["event"] == "audit"]
    said = [(line["method"], line.get("who"), line["peer"], line["reason"]) for line in lines]
    # Whose an unsigned one is, nobody knows.
    assert said == [
        (path, who, "127.0.0.1", reason)
        for who, reason in (("jwt:rsa-1:ci@example.com", "TOKEN_EXPIRED"), (None, "ALGORITHM_NOT_ALLOWED"))
        for path in ("/v1/completions", "/v1/models")
    ]
    for text in (expired, strange):
        assert not [part for part in text.split(".") if part and part in str(logs)]
