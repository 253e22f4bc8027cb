"""What of an engine's HTTP port is open to whom, where calls need tickets: nothing but its health to strangers."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from agentserving.contract.engine_http import POD_HEADER
from agentserving.contract.pod_secret import made_pod_secret, read_pod_secret
from agentserving.contract.signatures import public_bytes
from agentserving_engine.calls import TicketCheck, Unticketed
from agentserving_engine.http.doors import Door, check, door_of
from agentserving_engine.http.entrance import Entrance, RefusedEntryError
from agentserving_engine.http.middleware import EngineMiddleware, Message
from agentserving_gateway.routes import ROUTES
from engine.calls.tickets import KEYS, gateway_ticket, ticket
from hypothesis import given
from hypothesis import strategies as st

REFUSE = TicketCheck(engine_id="e", keys=lambda: KEYS, unticketed=Unticketed.REFUSE)
SECRET = "s3cret"
# Of vLLM 0.28 to 0.33, with and without its development mode.
ADMINISTRATION = (
    "/metrics", "/metrics/", "/docs", "/openapi.json", "/load", "/server_info", "/v1/load_lora_adapter", "/sleep",
    "/reset_prefix_cache", "/collective_rpc", "/abort_requests", "/pause", "/start_profile", "/inference/v1/generate",
    "/v1/audio/transcriptions", "/v1/realtime", "//metrics", "/v1/models/", "/health/../metrics", "",
)  # fmt: skip


def door(closed: TicketCheck, secret: str | None) -> Entrance:
    return Entrance(lambda: closed, separate_caches=True, pod_secret=secret)


def refusal(method: str, path: str, *, session: str = "", pod: str = "", closed: TicketCheck = REFUSE) -> str:
    """The code of the refusal; empty when the request is let in."""
    headers = [(b"x-session-id", session.encode())] if session else []
    headers += [(POD_HEADER.encode(), pod.encode())] if pod else []
    try:
        check(method, path, headers, door(closed, SECRET), 10)
    except RefusedEntryError as error:
        return error.code
    return ""


@pytest.mark.parametrize("path", ADMINISTRATION)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_administration_opens_to_the_pod_alone(method: str, path: str) -> None:
    for session in ("", "forged", ticket(), gateway_ticket("g")):
        assert refusal(method, path, session=session) == "pod_only"
    assert refusal(method, path, pod="s3cre") == "pod_only"
    assert refusal(method, path, pod=SECRET) == ""


READS = [("POST", "/tokenize"), ("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("GET", "/v1/responses/resp_1"),
         ("DELETE", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel")]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), READS)
def test_what_is_no_call_opens_to_a_gateways_ticket_for_this_engine_while_it_is_valid(method: str, path: str) -> None:
    assert refusal(method, path, session=gateway_ticket("g")) == ""
    assert refusal(method, path, session=gateway_ticket("g")) == "", "again: a retry is the same request"
    assert refusal(method, path, session=gateway_ticket("g", engine_id="x", fallbacks=("e",))) == ""
    assert refusal(method, path, pod=SECRET) == ""
    assert refusal(method, path) == "ticket_missing"
    assert refusal(method, path, session="x" * 3000) == "ticket_malformed"
    assert refusal(method, path, session=gateway_ticket("g")[:-4] + "AAAA") == "ticket_forged"
    assert refusal(method, path, session=gateway_ticket("g", expires=9)) == "ticket_expired"
    assert refusal(method, path, session=gateway_ticket("g", engine_id="x")) == "ticket_wrong_engine"
    assert refusal(method, path, session=ticket()) == "ticket_no_gateway", "clients hold tickets of their calls"


def test_kubelet_asks_for_the_health_without_a_credential() -> None:
    assert refusal("GET", "/health") == ""


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.shown)
def test_a_gateway_finds_all_its_routes_open(route: object) -> None:
    assert isinstance(route, type(ROUTES[0]))
    path = route.shown.replace("{id}", "resp_1")
    for method in route.methods:
        assert door_of(method, path) in (Door.CALL, Door.READ)


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]), st.text("/.%vhealtmodrics1_"))
def test_whatever_a_stranger_asks_for_is_refused_here_or_needs_a_ticket_at_the_entrance(method: str, path: str) -> None:
    let_in = refusal(method, path) == ""
    assert let_in == (path in ("/health", "/ping") or door_of(method, path) is Door.CALL)


def test_where_calls_need_no_ticket_nothing_is_closed() -> None:
    opened = replace(REFUSE, unticketed=Unticketed.LAST)
    for method, path in (*READS, ("GET", "/metrics")):
        assert refusal(method, path, closed=opened) == ""


def test_no_secret_is_no_password() -> None:
    for secret in (None, ""):
        for headers in ([], [(POD_HEADER.encode(), b"")]):
            with pytest.raises(RefusedEntryError):
                check("GET", "/metrics", headers, door(REFUSE, secret), 0)


def test_all_processes_of_a_pod_have_one_secret_and_strangers_cannot_read_it(tmp_path: Path) -> None:
    assert read_pod_secret(tmp_path) == ""
    found: list[str] = []
    makers = [threading.Thread(target=lambda: found.append(made_pod_secret(tmp_path))) for _ in range(8)]
    for each in makers:
        each.start()
    for each in makers:
        each.join()
    assert len(set(found)) == 1
    assert len(found[0]) >= 43
    assert read_pod_secret(tmp_path) == found[0] == made_pod_secret(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_middleware_lets_no_stranger_through_to_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("TICKET", "GATEWAY"):
        (tmp_path / name).write_bytes(public_bytes(os.urandom(32)))
        monkeypatch.setenv(f"AGENTSERVING_{name}_KEY_FILE", str(tmp_path / name))
    monkeypatch.setenv("AGENTSERVING_ENGINE_ID", "e")
    monkeypatch.setenv("AGENTSERVING_CHANNEL_DIR", str(tmp_path))
    monkeypatch.setenv("AGENTSERVING_UNTICKETED", "refuse")
    reached, sent = list[str](), list[Message]()

    async def application(scope: Message, receive: object, send: object) -> None:
        reached.append(scope["path"])

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    vllm = EngineMiddleware(application)
    scope: Message = {"type": kind, "path": "/metrics", "headers": []} | ({"method": "GET"} if kind == "http" else {})
    await vllm(dict(scope), receive, send)
    assert reached == []
    assert sent[0]["type"] == ("http.response.start" if kind == "http" else "websocket.close")
    pod = [(POD_HEADER.encode(), read_pod_secret(tmp_path).encode())]
    await vllm({**scope, "headers": pod}, receive, send)
    assert reached == ["/metrics"]
