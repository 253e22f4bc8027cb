"""What clients of HTTP rely on: methods, preflights, continuation, large heads and bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from gateway.gateway_rig import Rig, answer_json, rig, value

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[Rig]:
    async with rig(answer_json, max_body_bytes=16 << 20) as made:
        yield made


@pytest.mark.parametrize("path", ["/", "/health"])
async def test_a_probe_by_head_is_answered_without_a_body(made: Rig, path: str) -> None:
    answer = await made.send(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


async def test_a_preflight_of_a_browser_is_answered(made: Rig) -> None:
    answer = await made.send(
        b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: http://page\r\nconnection: close\r\n"
        b"access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-a\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert value(answer, "access-control-allow-origin") == "http://page"
    assert "authorization" in value(answer, "access-control-allow-headers")


async def test_a_client_that_waits_for_leave_to_send_gets_it(made: Rig) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    async with asyncio.timeout(20):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_head_of_60_kb_is_taken(made: Rig) -> None:
    assert (await made.post(headers=f"x-large: {'y' * 60_000}\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("mib", [1, 10])
async def test_a_program_is_found_in_a_body_of_any_accepted_size(made: Rig, mib: int) -> None:
    body = json.dumps({"messages": ["x" * (mib << 20)], "prompt_cache_key": f"large-{mib}"}).encode()
    answer = await made.post(body=body)
    assert answer.startswith(b"HTTP/1.1 200")
    assert value(answer, "x-agentserving-program-id") == f"large-{mib}"
    assert made.engines[0].requests[-1].endswith(body)
