"""A follower rejects every kind of call with the leader's address, and serves once it leads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentserving.transport.errors import from_rpc, hint_of
from agentserving.v1 import (
    call_service_pb2,
    call_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
)
from agentserving_controlplane.__main__ import SERVICES, register
from agentserving_controlplane.api.gate import Gate, Services
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.store.memory import MemoryStore
from support.served_plane import SETTINGS


@asynccontextmanager
async def gated() -> AsyncIterator[tuple[Gate, grpc.aio.Channel]]:
    gate, server = Gate(), grpc.aio.server()
    server.add_generic_rpc_handlers((gate,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield gate, channel
    await server.stop(0)


async def ended(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if hasattr(call, "read") else call)
    return caught.value


def one_of_each_kind(channel: grpc.aio.Channel) -> list[Any]:
    calls = call_service_pb2_grpc.CallServiceStub(channel)
    programs = program_service_pb2_grpc.ProgramServiceStub(channel)
    return [
        programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p")),
        programs.WatchPrograms(program_service_pb2.WatchProgramsRequest()),
        calls.Admissions(),
    ]


@pytest.mark.parametrize("leader", ["10.0.0.7:7070", ""])
async def test_every_kind_of_call_is_refused_with_the_leaders_address(leader: str) -> None:
    async with gated() as (gate, channel):
        gate.leader = leader
        for call in one_of_each_kind(channel):
            error = await ended(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            refused = from_rpc(error, "here")
            assert (refused.reason, hint_of(refused), refused.retry_after_s) == ("NOT_LEADER", leader, 0.2)


async def test_once_it_is_open_all_services_are_there_and_once_closed_none() -> None:
    store = MemoryStore()
    plane = ControlPlane(SETTINGS, store, await store.acquire("t"), lambda error: None)
    await plane.recover(store)
    services = Services()
    register(services, plane)
    async with gated() as (gate, channel):
        gate.open(services)
        programs = program_service_pb2_grpc.ProgramServiceStub(channel)
        request = program_service_pb2.OpenProgramRequest(program_id="p")
        assert (await programs.OpenProgram(request)).program.program_id == "p"
        for name in SERVICES:
            unknown = channel.unary_unary(f"/{name}/NoSuchMethod")
            assert (await ended(unknown(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
        gate.close()
        assert from_rpc(await ended(programs.OpenProgram(request)), "here").reason == "NOT_LEADER"
    await plane.commits.close()


async def test_a_leader_whose_lease_is_over_by_its_own_clock_admits_no_call() -> None:
    store = MemoryStore()
    plane = ControlPlane(SETTINGS, store, await store.acquire("t"), lambda error: None)
    services = Services()
    register(services, plane)
    async with gated() as (gate, channel):
        gate.open(services)
        await store.resign()
        calls = call_service_pb2_grpc.CallServiceStub(channel)
        error = await ended(calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id="p")))
        assert from_rpc(error, "here").reason == "NOT_LEADER"
        assert not plane.table.rows
