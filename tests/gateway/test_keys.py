"""Clients show who they are: without a valid key nothing but health is answered, and a tenant is the key's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from agentserving.contract.ids import Tenant
from agentserving.contract.response_ids import response_id
from agentserving.contract.ticket import verify
from agentserving_controlplane.policy.tenants import TenantRow
from agentserving_gateway.routes import SHOWN, route_of
from gateway.gateway_rig import KEYS, Rig, answer_json, rig, until, value
from gateway.played_keys import PlayedKeys
from structlog.testing import capture_logs

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM = "x-agentserving-program-id: p\r\n"
# Issue 15: a revocation is in force everywhere within this time.
REVOKED_S = 5.0


@dataclass
class Doors:
    """The rig, and the leader's keys."""

    made: Rig
    keys: PlayedKeys

    async def make(self, tenant: str, **chosen: Any) -> str:
        """A key that the gateway knows."""
        text = self.keys.make(tenant, **chosen)
        await until(lambda: self.known(text) is not None)
        return text

    def known(self, text: str) -> Any:
        """The gateway's row of a key."""
        watch = self.made.picker.keys
        found = watch.current() if watch is not None else None
        return found.get(text[3:11]) if found is not None else None

    @property
    def served(self) -> list[bytes]:
        """What engines were sent."""
        return [request for engine in self.made.engines for request in engine.requests]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[Doors]:
    keys = PlayedKeys()
    async with rig(answer_json, answer_json, keys=keys) as made:
        await until(lambda: made.picker.authenticator.is_ready)
        yield Doors(made, keys)


@pytest.fixture
def doors(opened: Doors) -> Doors:
    opened.made.play(answer_json, answer_json)
    return opened


def bearer(text: str) -> str:
    return f"authorization: Bearer {text}\r\n"


def api_key(text: str) -> str:
    return f"x-api-key: {text}\r\n"


def both(text: str) -> str:
    """SDKs that have a placeholder in one of the two headers."""
    return bearer("none") + api_key(text)


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def body(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


PATHS = [shown.replace("{id}", "resp_1") for shown in SHOWN]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        "", PROGRAM, bearer("none"), "authorization: Basic YTpi\r\n", api_key("as_x"), "authorization: \r\n",
        bearer("as_00000000_" + "A" * 43), "x-agentserving-tenant: a\r\n", bearer("a") + bearer("b"),
    ],
)  # fmt: skip
async def test_no_route_answers_without_a_valid_key(doors: Doors, path: str, headers: str) -> None:
    if path.startswith("/v1/models"):
        methods = ["GET", "HEAD"]
    else:
        methods = [method for method in ("GET", "POST", "DELETE") if route_of(method, path) is not None]
    assert methods
    for method in methods:
        length, content = ("content-length: 2\r\n", "{}") if method == "POST" else ("", "")
        request = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{length}{headers}\r\n{content}"
        answer = await doors.made.send(request.encode())
        assert status(answer) == 401
        assert value(answer, "www-authenticate").startswith('Bearer realm="agentserving"')
        if method != "HEAD":
            error = body(answer)["error"]
            assert "agentserving key create" in error["message"]
            dialect = "authentication_error" if path.startswith("/v1/messages") else "invalid_request_error"
            assert error["type"] == dialect
    assert doors.served == []


async def test_health_needs_no_key(doors: Doors) -> None:
    assert status(await doors.made.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")) == 200


async def test_a_refusal_says_whether_a_key_is_missing_unknown_expired_or_revoked(doors: Doors) -> None:
    expired = await doors.make("a", lifetime_s=60, age_s=120)
    revoked = await doors.make("a")
    doors.keys.revoke(revoked)
    await until(lambda: bool(doors.known(revoked).revoked_unix_s))
    refused = 'Bearer realm="agentserving", error="invalid_token"'
    for headers, code, words, challenge in (
        ("", "missing_api_key", "no API key was sent", 'Bearer realm="agentserving"'),
        (bearer("none"), "invalid_api_key", "is not a client's", refused),
        (bearer(expired), "invalid_api_key", f"{expired[3:11]} has expired", refused),
        (bearer(revoked), "invalid_api_key", f"{revoked[3:11]} has been revoked", refused),
        # A caller without the whole key does not learn its state.
        (bearer(revoked[:-4] + "AAAA"), "invalid_api_key", "is not a client's", refused),
    ):
        answer = await doors.made.post(headers=headers + PROGRAM)
        assert status(answer) == 401
        error = body(answer)["error"]
        assert error["code"] == code
        assert words in error["message"]
        assert value(answer, "www-authenticate") == challenge
        assert expired[12:] not in answer.decode()
        assert revoked[12:] not in answer.decode()


@pytest.mark.parametrize("header", [bearer, api_key, both])
@pytest.mark.parametrize("by_body", [False, True])
async def test_a_key_opens_and_never_reaches_an_engine(doors: Doors, header: Any, by_body: bool) -> None:
    text = await doors.make("a")
    given = header(text) + ("" if by_body else PROGRAM)
    answer = await doors.made.post(body=b'{"prompt_cache_key": "p"}', headers=given)
    assert status(answer) == 200
    (request,) = doors.served
    assert text[12:].encode() not in request
    assert value(request, "authorization") == value(request, "x-api-key") == ""


async def test_lists_of_models_are_asked_for_without_the_key(doors: Doors) -> None:
    text = await doors.make("a")
    request = "GET /v1/models HTTP/1.1\r\nhost: x\r\n" + bearer(text) + api_key(text) + "\r\n"
    assert status(await doors.made.send(request.encode())) == 200
    assert len(doors.served) == 2
    assert all(text[12:].encode() not in each for each in doors.served)


async def test_a_call_belongs_to_its_keys_tenant_whatever_the_request_claims(doors: Doors) -> None:
    for tenant in ("mine", "theirs"):
        text = await doors.make(tenant)
        for claim in ("x-agentserving-tenant: other\r\n", "x-agentserving-credential: other\r\n", ""):
            doors.made.play(answer_json, answer_json)
            answer = await doors.made.post(body=b'{"tenant": "other"}', headers=bearer(text) + PROGRAM + claim)
            assert status(answer) == 200
            ((engine, request),) = [(engine, each) for engine in doors.made.engines for each in engine.requests]
            ticket = verify(value(request, "x-session-id"), KEYS, engine_id=engine.name, now_unix_s=0).ticket
            assert ticket.tenant == tenant
            assert value(request, "x-agentserving-tenant") == tenant
            assert value(request, "x-agentserving-credential") == text[3:11]


async def test_a_revoked_key_opens_nothing_within_five_seconds(doors: Doors) -> None:
    revoked, forgotten = await doors.make("a"), await doors.make("a")
    doors.keys.revoke(revoked)
    doors.keys.forget(forgotten)
    began = time.monotonic()
    for text in (revoked, forgotten):
        async with asyncio.timeout(REVOKED_S):
            while status(await doors.made.post(headers=bearer(text) + PROGRAM)) != 401:
                await asyncio.sleep(0.02)
    assert time.monotonic() - began < REVOKED_S


async def test_a_key_revoked_while_the_leader_was_away_opens_nothing_once_it_is_back(doors: Doors) -> None:
    gone, forgotten, other = [await doors.make("a") for _ in range(3)]
    watch = doors.made.picker.keys
    assert watch is not None
    doors.made.link.stall()
    doors.made.link.cut()
    await until(lambda: not watch.is_connected)
    doors.keys.revoke(gone)
    del doors.keys.rows[forgotten[3:11]]
    request = "GET /v1/models HTTP/1.1\r\nhost: x\r\n" + bearer(other) + "\r\n"
    assert status(await doors.made.send(request.encode())) == 200
    doors.made.link.flow()
    began = time.monotonic()
    for text in (gone, forgotten):
        async with asyncio.timeout(REVOKED_S):
            while status(await doors.made.post(headers=bearer(text) + PROGRAM)) != 401:
                await asyncio.sleep(0.02)
    assert time.monotonic() - began < REVOKED_S
    assert status(await doors.made.post(headers=bearer(other) + PROGRAM)) == 200


async def test_a_key_made_while_the_leader_is_away_may_be_tried_again_and_opens_once_it_is_back(doors: Doors) -> None:
    """Clients give up after 401: it is for keys that do not exist."""
    watch = doors.made.picker.keys
    assert watch is not None
    doors.made.link.stall()
    doors.made.link.cut()
    await until(lambda: not watch.is_connected)
    text = doors.keys.make("a")
    answer = await doors.made.post(headers=bearer(text) + PROGRAM)
    assert (status(answer), body(answer)["error"]["code"]) == (503, "no_keys")
    assert value(answer, "retry-after")
    assert status(await doors.made.post(headers=bearer("sk-of-another-service") + PROGRAM)) == 401
    doors.made.link.flow()
    await until(lambda: watch.is_current)
    assert status(await doors.made.post(headers=bearer(text) + PROGRAM)) == 200
    assert status(await doors.made.post(headers=bearer(text[:-1] + "x") + PROGRAM)) == 401


async def test_browsers_may_read_a_refusal(doors: Doors) -> None:
    answer = await doors.made.post(headers="origin: https://x.example\r\n" + PROGRAM)
    assert status(answer) == 401
    assert value(answer, "access-control-allow-origin") == "https://x.example"
    preflight = (
        b"OPTIONS /v1/messages HTTP/1.1\r\nhost: x\r\norigin: https://x.example\r\n"
        b"access-control-request-method: POST\r\n\r\n"
    )
    assert status(await doors.made.send(preflight)) == 200


async def test_nobody_is_served_while_no_keys_are_known() -> None:
    keys = PlayedKeys(silent=True)
    async with rig(answer_json, keys=keys) as made:
        text = keys.make("a")
        assert not made.picker.ready.ok
        for headers in ("", PROGRAM, bearer(text), bearer(text) + PROGRAM):
            for path in ("/v1/completions", "/v1/messages"):
                answer = await made.post(path, headers=headers)
                assert status(answer) == 503
                assert value(answer, "retry-after")
                assert "has not received the API keys" in body(answer)["error"]["message"]
        assert made.engines[0].requests == []


async def test_refused_keys_are_in_the_audit_log_with_their_address_and_never_with_their_text() -> None:
    keys = PlayedKeys()
    expired = keys.make("a", lifetime_s=1, age_s=10)
    forged = "x-client-address: 6.6.6.6\r\n"
    async with rig(answer_json, keys=keys) as made:
        await until(lambda: made.picker.ready.ok)
        with capture_logs() as logs:
            for _ in range(3):
                assert status(await made.post(headers=bearer(expired) + PROGRAM + forged)) == 401
            assert status(await made.post("/v1/messages", headers=bearer("as_unknown0_" + "A" * 43))) == 401
            assert status(await made.post(headers=PROGRAM)) == 401
    said = [
        (line["method"], line.get("who"), line["peer"], line["reason"]) for line in logs if line["event"] == "audit"
    ]
    assert said == [
        ("/v1/completions", expired[3:11], "127.0.0.1", "KEY_EXPIRED"),
        ("/v1/messages", None, "127.0.0.1", "UNKNOWN_KEY"),
        ("/v1/completions", None, "127.0.0.1", "NO_CREDENTIAL"),
    ]
    assert expired not in str(logs)


@pytest.mark.parametrize("by_body", [False, True])
async def test_a_keys_calls_a_minute_are_bounded_and_each_is_counted_once(doors: Doors, by_body: bool) -> None:
    text, other = await doors.make("a", calls_per_minute=3), await doors.make("a")
    program = "" if by_body else PROGRAM
    for left in (2, 1, 0):
        answer = await doors.made.post(body=b'{"prompt_cache_key": "p"}', headers=bearer(text) + program)
        assert status(answer) == 200
        assert value(answer, "x-ratelimit-limit-requests") == "3"
        assert value(answer, "x-ratelimit-remaining-requests") == str(left)
    for path in ("/v1/completions", "/v1/messages"):
        answer = await doors.made.post(path, headers=bearer(text) + program)
        assert status(answer) == 429
        assert 0 < int(value(answer, "retry-after")) <= 20
        name = "anthropic-ratelimit-requests-{}" if path == "/v1/messages" else "x-ratelimit-{}-requests"
        assert (value(answer, name.format("limit")), value(answer, name.format("remaining"))) == ("3", "0")
        assert "3 requests a minute" in body(answer)["error"]["message"]
        assert body(answer)["error"]["type"] == "rate_limit_error"
    answer = await doors.made.post(headers=bearer(other) + program)
    assert status(answer) == 200
    assert not value(answer, "x-ratelimit-limit-requests")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
async def test_bounds_of_a_tenant_are_shown_on_answers_and_refusals(doors: Doors, path: str) -> None:
    name = "anthropic-ratelimit-{1}-{0}" if path == "/v1/messages" else "x-ratelimit-{0}-{1}"
    tenant = Tenant("bounded" + path[4:7])
    doors.made.plane.tenants.put(TenantRow(tenant=tenant, calls_per_minute=2, tokens_per_day=500))
    key, other = await doors.make(tenant), await doors.make(tenant, calls_per_minute=1)
    answer = await doors.made.post(path, headers=bearer(other) + PROGRAM)
    assert status(answer) == 200
    shown = {what: value(answer, name.format(what, "requests")) for what in ("limit", "remaining")}
    assert shown == {"limit": "1", "remaining": "0"}, "of both bounds the one that is reached first"
    answer = await doors.made.post(path, headers=bearer(key) + PROGRAM)
    assert status(answer) == 200
    assert value(answer, name.format("remaining", "requests")) == "0"
    assert value(answer, name.format("limit", "tokens")) == "500"
    answer = await doors.made.post(path, headers=bearer(key) + PROGRAM)
    assert status(answer) == 429
    assert 0 < int(value(answer, "retry-after")) <= 30
    assert value(answer, name.format("limit", "requests")) == "2"
    assert value(answer, name.format("remaining", "requests")) == "0"
    assert value(answer, name.format("reset", "requests"))
    assert "this tenant may use 2 calls a minute" in body(answer)["error"]["message"]


async def test_a_keys_prompt_tokens_a_minute_are_bounded(doors: Doors) -> None:
    text = await doors.make("a", prompt_tokens_per_minute=1000)
    large = b'{"prompt": "%s"}' % (b"x" * 3200)
    assert status(await doors.made.post(body=large, headers=bearer(text) + PROGRAM)) == 200
    answer = await doors.made.post(body=large, headers=bearer(text) + PROGRAM)
    assert status(answer) == 429
    assert "1000 prompt tokens a minute" in body(answer)["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", None)])
async def test_a_response_opens_to_its_own_tenant_only(doors: Doors, method: str, path: str | None) -> None:
    made = response_id("e0", "0" * 32, "mine")
    for tenant, expected in (("mine", 200), ("theirs", 404)):
        doors.made.play(answer_json, answer_json)
        text = await doors.make(tenant)
        content = json.dumps({"previous_response_id": made}) if path is None else "{}" if method == "POST" else ""
        length = f"content-length: {len(content)}\r\n" if content else ""
        target = "/v1/responses" if path is None else f"/v1/responses/{made}{path}"
        request = f"{method} {target} HTTP/1.1\r\nhost: x\r\n{length}{bearer(text)}{PROGRAM}\r\n{content}"
        answer = await doors.made.send(request.encode())
        assert status(answer) == expected
        assert bool(doors.served) == (expected == 200)
