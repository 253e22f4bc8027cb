"""Peers that disappear without closing or resetting their connections."""

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
from support.eventually import eventually_async
from support.killable_cluster import KillableCluster


async def state_of(cluster: KillableCluster, engine_id: str) -> types_pb2.EngineState.ValueType:
    """The state of an engine in the control plane's overview."""
    overview = await cluster.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=30)
    (found,) = [each.state for each in overview.engines if each.engine_id == engine_id]
    return found


@pytest.mark.etcd
async def test_an_engine_is_lost_while_its_sidecar_does_not_respond() -> None:
    async with KillableCluster() as cluster:

        async def until_it_is(wanted: types_pb2.EngineState.ValueType) -> None:
            async def reached() -> bool:
                return await state_of(cluster, "e1") == wanted

            await eventually_async(reached, f"e1 is {types_pb2.EngineState.Name(wanted)}")

        await until_it_is(types_pb2.ENGINE_STATE_READY)
        cluster.sidecars["e1"].signal(signal.SIGSTOP)
        try:
            await until_it_is(types_pb2.ENGINE_STATE_LOST)
            assert await state_of(cluster, "e0") == types_pb2.ENGINE_STATE_READY
        finally:
            cluster.sidecars["e1"].signal(signal.SIGCONT)
        await until_it_is(types_pb2.ENGINE_STATE_READY)


async def settings_of_a_connection() -> tuple[int, int]:
    """(idle seconds, milliseconds of unacknowledged data) after which the kernel breaks a connection to an engine."""
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
    """Receives the response of an engine; `ended` says whether it was complete."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, framed: bool) -> None:
        assert status == 200

    def answer_bytes(self, data: bytes) -> None:
        pass

    def answer_end(self, *, complete: bool) -> None:
        self.ended.set_result(complete)


async def answered(unread_s: float, body: bytes) -> bool:
    """Whether a call succeeds although the engine leaves its body unread for `unread_s` seconds."""

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(unread_s)  # the subject of the test: a busy engine
        await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    # asyncio reads up to 64 KiB ahead; the rest of the body stays unread in the kernel.
    server = await asyncio.start_server(engine, "127.0.0.1", 0, limit=1 << 15)
    pool = UpstreamPool()
    try:
        answer = Answer()
        connection = await pool.connect("{}:{}".format(*server.sockets[0].getsockname()))
        connection.send(b"", body, answer, keep=False)
        return await asyncio.wait_for(answer.ended, 60)
    finally:
        pool.close()
        server.close()


@pytest.mark.parametrize("loops", [asyncio, uvloop])
def test_an_engine_that_is_slow_to_read_a_large_body_is_not_disconnected(
    loops: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "SILENT_S", 1)
    monkeypatch.setattr(upstream, "PROBE_INTERVAL_S", 1)
    monkeypatch.setattr(upstream, "PROBES", 1)
    assert loops.run(answered(5, bytes(16 << 20)))


@pytest.mark.parametrize("loops", [asyncio, uvloop])
def test_connections_to_engines_break_ten_seconds_after_their_machine_disappears(loops: ModuleType) -> None:
    # Only the settings are checked here; e2e/nodes/test_node_loss.py removes a machine.
    assert loops.run(settings_of_a_connection()) == (10, 10_000)
