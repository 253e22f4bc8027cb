"""aiohttp, urllib3 and requests, OS threads, subprocesses, and what a program says that made no call."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import agentserving
import aiohttp
import httpx
import pytest
import requests
import urllib3
from agentserving.programs import context
from agentserving.programs.gateways import origin_of
from proto.client.http_origin import Origin, origin


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    for name in (
        "AGENTSERVING_CONTROL_PLANE", "AGENTSERVING_GATEWAY", "ANTHROPIC_BASE_URL", "AGENTSERVING_PROGRAM_ID",
        "http_proxy", "HTTP_PROXY",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    with origin() as created:
        monkeypatch.setenv("OPENAI_BASE_URL", created.base_url)
        agentserving.instrument()
        yield created
    agentserving.uninstrument()


@pytest.fixture
def stranger() -> Iterator[Origin]:
    with origin() as created:
        yield created


def by_requests(url: str, **given: str) -> int:
    return requests.post(url, json={}, headers=given, timeout=10).status_code


def by_session(url: str, **given: str) -> int:
    with requests.Session() as session:
        return session.post(url, json={}, headers=given, timeout=10).status_code


def by_urllib3(url: str, **given: str) -> int:
    with urllib3.PoolManager() as pool:
        return pool.request("POST", url, body=b"{}", headers=given or None).status


def by_pool(url: str, **given: str) -> int:
    with urllib3.connection_from_url(url) as pool:
        return pool.urlopen("POST", "/v1", body=b"{}", headers=given).status


SYNC = [by_requests, by_session, by_urllib3, by_pool]


@pytest.mark.parametrize("post", SYNC)
def test_calls_of_urllib3_name_their_program_and_the_calls_they_follow(gateway: Origin, post: Any) -> None:
    with agentserving.program("triage", program_id="p1"):
        assert post(gateway.base_url) == 200
        assert post(gateway.base_url) == 200
        at = context.current_point()
        assert at is not None
        assert at.thread.in_flight == 0
    post(gateway.base_url)
    common = {"program-id": "p1", "program-name": "triage", "thread-id": "main"}
    assert gateway.seen == [common, {**common, "parent-call-ids": "p1.1.0"}, {}]


async def test_calls_of_aiohttp_name_their_program_and_the_calls_they_follow(gateway: Origin) -> None:
    async with aiohttp.ClientSession() as session:

        async def post() -> None:
            async with session.post(gateway.base_url, json={}) as response:
                assert await response.json(content_type=None) == {}

        with agentserving.program("triage", program_id="p1"):
            await post()
            await post()
            at = context.current_point()
            assert at is not None
            assert at.thread.in_flight == 0
            await asyncio.gather(post(), post())
        await post()
    common = {"program-id": "p1", "program-name": "triage"}
    main = {**common, "thread-id": "main"}
    assert gateway.seen[:2] == [main, {**main, "parent-call-ids": "p1.1.0"}]
    assert sorted(sent["thread-id"] for sent in gateway.seen[2:4]) == ["t1", "t2"]
    assert {sent["parent-call-ids"] for sent in gateway.seen[2:4]} == {"p1.1.1"}
    assert gateway.seen[4] == {}


@pytest.mark.parametrize("post", SYNC)
def test_urllib3_sends_nothing_to_other_servers_and_the_headers_of_the_user_win(
    gateway: Origin, stranger: Origin, post: Any
) -> None:
    with agentserving.program(program_id="p1"):
        post(stranger.base_url)
        post(gateway.base_url, **{"X-AgentServing-Program-ID": "mine"})
        post(gateway.base_url, **{"x-agentserving-thread-id": "critic"})
        if post is not by_pool:
            gateway.redirect_to = stranger.base_url
            post(gateway.base_url)
    assert gateway.seen[:2] == [{"program-id": "mine"}, {"program-id": "p1", "thread-id": "critic"}]
    assert all(sent == {} for sent in stranger.seen)


async def test_aiohttp_sends_nothing_to_other_servers(gateway: Origin, stranger: Origin) -> None:
    async with aiohttp.ClientSession() as session:
        with agentserving.program(program_id="p1"):
            (await session.post(stranger.base_url)).release()
            gateway.redirect_to = stranger.base_url
            (await session.post(gateway.base_url)).release()
    assert gateway.seen == [{"program-id": "p1", "thread-id": "main"}]
    assert stranger.seen == [{}, {}]


async def test_a_call_that_fails_ends(gateway: Origin) -> None:
    gateway.status = 503
    with agentserving.program(program_id="p1"):
        at = context.current_point()
        assert at is not None
        assert by_requests(gateway.base_url) == 503
        async with aiohttp.ClientSession() as session, session.post(gateway.base_url) as response:
            await response.read()
        agentserving.instrument(base_urls="http://127.0.0.1:9")
        with pytest.raises(requests.ConnectionError):
            by_requests("http://127.0.0.1:9")
        assert at.thread.in_flight == 0
    assert [sent.get("parent-call-ids") for sent in gateway.seen] == [None, None]


def test_a_retry_of_urllib3_is_the_same_call(gateway: Origin) -> None:
    gateway.status = 503
    with urllib3.PoolManager() as pool, agentserving.program(program_id="p1"):
        retries = urllib3.Retry(2, status_forcelist=[503], allowed_methods=None, raise_on_status=False)
        pool.request("POST", gateway.base_url, retries=retries)
        at = context.current_point()
        assert at is not None
        assert at.thread.tracker.calls_begun == 1
    assert gateway.seen == [{"program-id": "p1", "thread-id": "main"}] * 3


def test_uninstrumenting_restores_every_class(gateway: Origin) -> None:
    classes = (aiohttp.ClientRequest, urllib3.HTTPConnectionPool, threading.Thread, ThreadPoolExecutor)
    agentserving.uninstrument()
    before = [dict(cls.__dict__) for cls in classes]
    agentserving.instrument()
    assert [dict(cls.__dict__) for cls in classes] != before
    agentserving.uninstrument()
    assert [dict(cls.__dict__) for cls in classes] == before
    with agentserving.program():
        by_requests(gateway.base_url)
    assert gateway.seen == [{}]


def test_threads_and_pools_carry_the_program_and_forget_it(gateway: Origin) -> None:
    with ThreadPoolExecutor(1) as pool:
        with agentserving.program(program_id="p1"):
            assert list(pool.map(by_requests, [gateway.base_url] * 2)) == [200, 200]
            thread = threading.Thread(target=by_requests, args=(gateway.base_url,))
            thread.start()
            thread.join()
        with agentserving.program(program_id="p2"):
            pool.submit(by_requests, gateway.base_url).result()
        pool.submit(by_requests, gateway.base_url).result()
    assert [sent.get("program-id") for sent in gateway.seen] == ["p1", "p1", "p1", "p2", None]


@pytest.mark.parametrize(("given", "used"), [("localhost", "127.0.0.1"), ("127.0.0.1", "localhost")])
def test_the_names_of_this_machine_are_one(
    gateway: Origin, monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", gateway.base_url.replace("127.0.0.1", given))
    with agentserving.program(program_id="p1"), httpx.Client(trust_env=False) as client:
        client.post(gateway.base_url.replace("127.0.0.1", used))
    assert [sent["program-id"] for sent in gateway.seen] == ["p1"]
    assert origin_of("http://[::1]:1") == origin_of("http://localhost:1")


CHILD = """
import agentserving, httpx, sys
agentserving.instrument()
with httpx.Client(trust_env=False) as client:
    client.post(sys.argv[1])
    with agentserving.program(program_id='own', control_plane=''):
        client.post(sys.argv[1])
"""


def test_a_subprocess_belongs_to_the_program_of_its_environment(gateway: Origin) -> None:
    with agentserving.program(program_id="p1") as p:
        environment = {**os.environ, **p.environment()}
        subprocess.run([sys.executable, "-c", CHILD, gateway.base_url], check=True, timeout=60, env=environment)
    assert gateway.seen == [
        {"program-id": "p1"},
        {"program-id": "own", "parent-program-id": "p1", "thread-id": "main"},
    ]


def test_a_program_that_made_no_call_names_the_servers_that_were_called(
    gateway: Origin, stranger: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "agentserving"):
        with agentserving.program("lost"):
            for _ in range(2):
                by_requests(stranger.base_url)
        with agentserving.program("found"):
            by_requests(stranger.base_url)
            by_requests(gateway.base_url)
        with agentserving.program("idle"):
            pass
    (record,) = [record for record in caplog.records if record.name == "agentserving"]
    assert "program lost made no call" in record.getMessage()
    assert record.getMessage().count(stranger.base_url.removesuffix("/v1")) == 1
