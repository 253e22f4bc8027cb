"""How many streams one key, and all clients together, may have open."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from agentserving.contract.keys import NewKey
from agentserving.v1 import program_service_pb2, program_service_pb2_grpc
from agentserving_controlplane.api import guard, program
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
