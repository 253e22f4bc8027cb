"""How many streams one key, and all clients together, may have open."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import grpc
import pytest
from agentserving.contract.keys import NewKey
from agentserving.v1 import program_service_pb2, program_service_pb2_grpc
from agentserving_controlplane import __main__ as control_plane
from agentserving_controlplane.api import guard, program
from agentserving_sidecar import __main__ as sidecar
from controlplane.guarded_plane import a_key, bearer, guarded
from controlplane.leader_builders import until
from support.eventually import DEADLINE_S


async def test_streams_of_one_key_are_bounded_and_those_of_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_STREAMS", 3)
    one, other = a_key("acme"), a_key("globex")
    async with guarded(None, two_ports=False, bootstrap_keys=(one.row, other.row)) as plane:
        programs: Any = program_service_pb2_grpc.ProgramServiceStub(await plane.parts())

        def watch(key: NewKey) -> Any:
            request = program_service_pb2.WatchProgramsRequest()
            return programs.WatchPrograms(request, metadata=bearer(key.text), timeout=DEADLINE_S)

        streams = [watch(one) for _ in range(3)]
        await until(lambda: len(plane.plane.listeners) == 3)
        with pytest.raises(grpc.aio.AioRpcError, match="has 3 open streams, of at most 3") as caught:
            await watch(one).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        streams.append(watch(other))
        await until(lambda: len(plane.plane.listeners) == 4)
        streams[0].cancel()
        await until(lambda: len(plane.plane.listeners) == 3)
        streams.append(watch(one))
        await until(lambda: len(plane.plane.listeners) == 4)
        monkeypatch.setattr(program, "MAX_WATCHERS", 4)
        with pytest.raises(grpc.aio.AioRpcError, match="4 streams wait for changes, of at most 4"):
            await watch(other).read()
        for stream in streams:
            stream.cancel()


@pytest.mark.parametrize("options", [control_plane.SERVER_OPTIONS, sidecar.SERVER_OPTIONS])
async def test_a_connection_may_have_a_thousand_streams_and_is_told_so(options: list[tuple[str, int]]) -> None:
    server = grpc.aio.server(options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
    async with asyncio.timeout(DEADLINE_S):
        head = await reader.readexactly(9)
        settings = await reader.readexactly(int.from_bytes(head[:3], "big"))
    # RFC 9113, section 6.5: frame type 4; pairs of an identifier and a value.
    assert head[3] == 4
    found = dict(struct.unpack_from(">HI", settings, at) for at in range(0, len(settings), 6))
    assert found[3] == 1000, "SETTINGS_MAX_CONCURRENT_STREAMS"
    writer.close()
    await server.stop(None)
