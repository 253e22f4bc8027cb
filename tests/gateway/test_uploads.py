"""While connections are scarce, a tenant's requests that still send their bodies are bounded, and others are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agentserving.contract.ids import Tenant
from agentserving_gateway.errors import HttpError
from agentserving_gateway.uploads import Uploads
from gateway.gateway_rig import answer_json, rig, until
from gateway.played_keys import PlayedKeys

A, B = Tenant("a"), Tenant("b")


def test_a_tenant_has_so_many_at_once_only_while_connections_are_scarce() -> None:
    crowded = False
    uploads = Uploads(2, 120.0, lambda: crowded)
    for _ in range(5):
        uploads.awaited(A, 0.0)
    crowded = True
    with pytest.raises(HttpError) as refused:
        uploads.awaited(A, 30.0)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (429, "too_many_uploads", 90.0)
    uploads.awaited(B, 30.0)
    uploads.arrived(A)
    uploads.awaited(A, 30.0)


def test_one_that_never_arrives_counts_until_envoy_has_ended_it() -> None:
    uploads = Uploads(1, 120.0, lambda: True)
    uploads.awaited(A, 0.0)
    with pytest.raises(HttpError):
        uploads.awaited(A, 119.0)
    uploads.awaited(A, 120.0)


def test_what_arrives_without_having_been_asked_for_opens_no_room() -> None:
    """After a restart of the picker, bodies arrive that the former one has asked for."""
    uploads = Uploads(1, 120.0, lambda: True)
    for _ in range(3):
        uploads.arrived(A)
    uploads.awaited(A, 0.0)
    with pytest.raises(HttpError):
        uploads.awaited(A, 0.0)


def head(path: str, key: str) -> bytes:
    """Of a request whose body does not come."""
    lines = (f"POST {path} HTTP/1.1", "host: x", "content-length: 2", f"authorization: Bearer {key}", "", "{")
    return "\r\n".join(lines).encode()


@asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """Open ones."""
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield held
    finally:
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
async def test_one_tenants_slow_uploads_leave_room_for_others(path: str) -> None:
    keys = PlayedKeys()
    slow, other = keys.make("a"), keys.make("b")
    # A tenth of the connections is four.
    async with rig(answer_json, keys=keys, max_connections=40) as made:
        await until(lambda: made.picker.ready.ok)
        async with connections(made.port, 26):
            await until(lambda: made.picker.crowd.is_there)
            async with connections(made.port, 6) as held:
                for _, writer in held:
                    writer.write(head(path, slow))
                answers = [asyncio.create_task(reader.readuntil(b"\r\n")) for reader, _ in held]
                await until(lambda: sum(each.done() for each in answers) == 2)
                assert {each.result() for each in answers if each.done()} == {b"HTTP/1.1 429 Too Many Requests\r\n"}
                answer = await made.post(headers=f"authorization: Bearer {other}\r\n")
                assert answer.startswith(b"HTTP/1.1 200"), answer
                # Those that finish are served.
                for _, writer in held:
                    writer.write(b"}")
                await until(lambda: all(each.done() for each in answers))
                assert sum(b" 200 " in each.result() for each in answers) == 4
