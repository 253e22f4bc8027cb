"""What httpx and httpx2 send, and to which servers."""

from __future__ import annotations

import importlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import agentserving
import pytest
import pytest_asyncio
from agentserving.programs import context
from proto.client.http_origin import Origin, origin


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    for name in ("AGENTSERVING_CONTROL_PLANE", "AGENTSERVING_GATEWAY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with origin() as created:
        monkeypatch.setenv("OPENAI_BASE_URL", created.base_url)
        yield created
    agentserving.uninstrument()


@pytest.fixture
def stranger() -> Iterator[Origin]:
    with origin() as created:
        yield created


class Sender:
    """One client, of either library, sync or async, that carries the program in either way."""

    def __init__(self, library: Any, *, is_async: bool, how: str) -> None:
        if how == "instrument":
            agentserving.instrument()
        kind = library.AsyncClient if is_async else library.Client
        self.is_async, self.library = is_async, library
        self.client: Any = kind(follow_redirects=True, trust_env=False)
        if how == "attach":
            self.client = agentserving.attach(self.client)

    async def post(self, url: str, **arguments: Any) -> Any:
        """A whole request."""
        answer = self.client.post(url, **arguments)
        return await answer if self.is_async else answer

    async def close(self) -> None:
        """Ends it."""
        await self.client.aclose() if self.is_async else self.client.close()


WAYS = [
    pytest.param((library, is_async, how), id=f"{library}-{'async' if is_async else 'sync'}-{how}")
    for library in ("httpx", "httpx2")
    for is_async in (False, True)
    for how in ("instrument", "attach")
]


@pytest_asyncio.fixture(params=WAYS)
async def sender(request: pytest.FixtureRequest, gateway: Origin) -> AsyncIterator[Sender]:
    library, is_async, how = request.param
    created = Sender(importlib.import_module(library), is_async=is_async, how=how)
    yield created
    await created.close()


async def test_a_call_names_its_program_and_the_calls_it_follows(sender: Sender, gateway: Origin) -> None:
    with agentserving.program("triage", program_id="p1"):
        await sender.post(gateway.base_url)
        await sender.post(gateway.base_url)
    await sender.post(gateway.base_url)
    common = {"program-id": "p1", "program-name": "triage", "thread-id": "main"}
    assert gateway.seen == [common, {**common, "parent-call-ids": "p1.1.0"}, {}]


async def test_nothing_is_sent_to_other_servers(sender: Sender, gateway: Origin, stranger: Origin) -> None:
    with agentserving.program(program_id="p1"):
        await sender.post(stranger.base_url)
        gateway.redirect_to = stranger.base_url
        await sender.post(gateway.base_url)
    assert stranger.seen == [{}, {}]
    assert gateway.seen[0]["program-id"] == "p1"


async def test_a_redirect_within_the_gateway_is_one_call_after_another(sender: Sender, gateway: Origin) -> None:
    with agentserving.program(program_id="p1"):
        await sender.post(gateway.base_url)
        gateway.redirect_to, before = gateway.base_url + "/more", len(gateway.seen)
        with pytest.raises(sender.library.TooManyRedirects):
            await sender.post(gateway.base_url)
        gateway.redirect_to = ""
        await sender.post(gateway.base_url)
    assert {sent["parent-call-ids"] for sent in gateway.seen[before:]} == {"p1.1.0"}


async def test_headers_of_the_user_win(sender: Sender, gateway: Origin) -> None:
    with agentserving.program(program_id="p1"):
        await sender.post(gateway.base_url, headers={"X-AgentServing-Program-ID": "mine"})
        await sender.post(gateway.base_url, headers={"x-agentserving-thread-id": "critic"})
    assert gateway.seen == [{"program-id": "mine"}, {"program-id": "p1", "thread-id": "critic"}]


async def test_a_request_of_the_caller_is_sent_again_with_current_headers(sender: Sender, gateway: Origin) -> None:
    request = sender.client.build_request("POST", gateway.base_url)

    async def send() -> None:
        answer = sender.client.send(request)
        await answer if sender.is_async else answer

    with agentserving.program(program_id="p1"):
        await send()
        await send()
    await send()
    assert [sent.get("parent-call-ids") for sent in gateway.seen] == [None, "p1.1.0", None]
    assert gateway.seen[2] == {}


async def test_a_call_that_fails_is_no_parent_and_no_longer_in_flight(sender: Sender, gateway: Origin) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with agentserving.program(program_id="p1"):
        await sender.post(gateway.base_url)
        gateway.status = 503
        assert (await sender.post(gateway.base_url)).status_code == 503
        gateway.status = 200
        agentserving.attach(sender.client, base_urls=away)
        with pytest.raises(sender.library.ConnectError):
            await sender.post(away)
        await sender.post(gateway.base_url)
        at = context.current_point()
        assert at is not None
        assert at.thread.in_flight == 0
    assert [sent.get("parent-call-ids") for sent in gateway.seen] == [None, "p1.1.0", "p1.1.0"]


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_streamed_call_is_in_flight_until_its_stream_is_closed(library: str, gateway: Origin) -> None:
    agentserving.instrument()
    with importlib.import_module(library).Client(trust_env=False) as client, agentserving.program():
        with client.stream("POST", gateway.base_url) as answer:
            at = context.current_point()
            assert at is not None
            assert at.thread.in_flight == 1
            assert answer.read() == b"{}"
        assert at.thread.in_flight == 0


def test_only_post_is_a_call(gateway: Origin) -> None:
    import httpx

    agentserving.instrument()
    with httpx.Client(trust_env=False) as client, agentserving.program():
        client.get(gateway.base_url)
    assert gateway.seen == [{}]


def test_instrumenting_twice_is_once_and_uninstrumenting_is_whole(gateway: Origin) -> None:
    import httpx

    before = httpx.HTTPTransport.handle_request
    agentserving.instrument()
    once = httpx.HTTPTransport.handle_request
    agentserving.instrument(base_urls="http://elsewhere.example")
    assert httpx.HTTPTransport.handle_request is once
    with httpx.Client(trust_env=False) as client, agentserving.program():
        client.post(gateway.base_url)
    assert gateway.seen == [{}]
    agentserving.uninstrument()
    assert httpx.HTTPTransport.handle_request is before


def test_uninstrumenting_leaves_what_others_have_wrapped_around_us(
    gateway: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    before = httpx.HTTPTransport.handle_request
    agentserving.instrument()
    ours = httpx.HTTPTransport.handle_request
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", lambda self, request: ours(self, request))
    agentserving.uninstrument()
    with httpx.Client(trust_env=False) as client, agentserving.program(program_id="p1"):
        client.post(gateway.base_url)
        agentserving.instrument()
        client.post(gateway.base_url)
    monkeypatch.undo()
    agentserving.uninstrument()
    assert httpx.HTTPTransport.handle_request is before
    assert [sent.get("program-id") for sent in gateway.seen] == [None, "p1"]


def test_the_variable_of_our_own_wins_over_those_of_the_sdks(
    gateway: Origin, stranger: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    agentserving.instrument()
    monkeypatch.setenv("AGENTSERVING_GATEWAY", stranger.base_url)
    with httpx.Client(trust_env=False) as client, agentserving.program():
        client.post(gateway.base_url)
        client.post(stranger.base_url)
    assert (len(gateway.seen[0]), len(stranger.seen[0])) == (0, 2)


def test_a_base_url_without_a_host_is_refused() -> None:
    with pytest.raises(ValueError, match="names no host"):
        agentserving.instrument(base_urls=["/v1"])


@pytest.mark.parametrize("defined", ["before", "after"])
async def test_aiohttp_transports_carry_the_program_whenever_their_class_is_defined(
    gateway: Origin, defined: str
) -> None:
    """LiteLLM imports its transport late, derives it from a base of its own, and reads `content` of the request."""
    import httpx
    import httpx_aiohttp

    def define() -> Any:
        class AiohttpTransport(httpx_aiohttp.AiohttpTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                assert request.content == b'{"a": 1}'
                return await super().handle_async_request(request)

        return AiohttpTransport

    if defined == "before":
        kind = define()
        agentserving.instrument()
    else:
        agentserving.instrument()
        kind = define()
    async with httpx.AsyncClient(transport=kind(), trust_env=False) as client:
        with agentserving.program("triage", program_id="p1"):
            await client.post(gateway.base_url, content=b'{"a": 1}')
            await client.post(gateway.base_url, content=b'{"a": 1}')
            at = context.current_point()
            assert at is not None
            assert at.thread.in_flight == 0
        agentserving.uninstrument()
        with agentserving.program(program_id="p2"):
            await client.post(gateway.base_url, content=b'{"a": 1}')
    common = {"program-id": "p1", "program-name": "triage", "thread-id": "main"}
    assert gateway.seen == [common, {**common, "parent-call-ids": "p1.1.0"}, {}]


def test_uninstrumenting_leaves_no_trace_on_the_base_of_all_transports() -> None:
    import httpx

    before = dict(httpx.AsyncBaseTransport.__dict__)
    agentserving.instrument()
    assert "__init_subclass__" in httpx.AsyncBaseTransport.__dict__
    agentserving.uninstrument()
    assert dict(httpx.AsyncBaseTransport.__dict__) == before
