"""Peers that are gone without a word: no end of a stream, no reset."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import ModuleType

import pytest
import uvloop
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_gateway import upstream
from agentserving_gateway.upstream_pool import UpstreamPool
from support.killable_cluster import KillableCluster


async def state_of(cluster: KillableCluster, engine_id: str) -> types_pb2.EngineState.ValueType:
    """As the control plane tells it."""
    overview = await cluster.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=5)
    (found,) = [each.state for each in overview.engines if each.engine_id == engine_id]
    return found


@pytest.mark.etcd
async def test_an_engine_whose_sidecar_no_longer_answers_is_given_no_calls_until_it_does() -> None:
    async with KillableCluster() as cluster:

        async def until_it_is(wanted: types_pb2.EngineState.ValueType) -> None:
            async with asyncio.timeout(30):
                while await state_of(cluster, "e1") != wanted:
                    await asyncio.sleep(0.05)

        await until_it_is(types_pb2.ENGINE_STATE_READY)
        cluster.sidecars["e1"].signal(signal.SIGSTOP)
        try:
            await until_it_is(types_pb2.ENGINE_STATE_LOST)
            assert await state_of(cluster, "e0") == types_pb2.ENGINE_STATE_READY
        finally:
            cluster.sidecars["e1"].signal(signal.SIGCONT)
        await until_it_is(types_pb2.ENGINE_STATE_READY)


async def settings_of_a_connection() -> tuple[int, int]:
    """(Seconds of silence, milliseconds without an acknowledgement) after which it breaks."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    pool = UpstreamPool()
    try:
        connection = await pool.connect("{}:{}".format(*server.sockets[0].getsockname()))
        assert connection.transport is not None
        asked = connection.transport.get_extra_info("socket")
        assert asked.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, each, times, unacknowledged = (
            asked.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        )
        connection.abandon()
        return idle + each * times, unacknowledged
    finally:
        pool.close()
        server.close()


class Answer:
    """Takes an engine's answer."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        assert status == 200

    def answer_bytes(self, data: bytes) -> None:
        pass

    def answer_end(self, *, complete: bool) -> None:
        self.ended.set_result(complete)


async def answered(unread_s: float, body: bytes) -> bool:
    """Whether a call ends well whose body the engine leaves unread for so long."""

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(unread_s)  # what is tested: it is busy
        await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    # It may read ahead into 64 KiB of its own.
    server = await asyncio.start_server(engine, "127.0.0.1", 0, limit=1 << 15)
    pool = UpstreamPool()
    try:
        answer = Answer()
        connection = await pool.connect("{}:{}".format(*server.sockets[0].getsockname()))
        connection.send(b"", body, answer, keep=False)
        return await asyncio.wait_for(answer.ended, 30)
    finally:
        pool.close()
        server.close()


@pytest.mark.parametrize("loops", [asyncio, uvloop])
def test_a_busy_engine_that_does_not_read_a_large_body_is_not_taken_for_gone(
    loops: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "SILENT_S", 1)
    monkeypatch.setattr(upstream, "ASK_EACH_S", 1)
    monkeypatch.setattr(upstream, "ASK_TIMES", 1)
    assert loops.run(answered(5, bytes(16 << 20)))


@pytest.mark.parametrize("loops", [asyncio, uvloop])
def test_a_connection_to_an_engine_does_not_outlive_its_machine_for_long(loops: ModuleType) -> None:
    # That it breaks is seen where a machine can be taken away (e2e/nodes/test_node_loss.py).
    assert loops.run(settings_of_a_connection()) == (10, 10_000)
