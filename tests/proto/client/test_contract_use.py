"""What the client sends and how it reads answers, of newer servers too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import agentserving
import grpc
import pytest
from agentserving import AsyncClient, EngineState, Outcome, ProgramState
from agentserving.v1 import admin_service_pb2, program_service_pb2, types_pb2
from proto.client.played_plane import Plane, served

BeginToolWait, EndToolWait = program_service_pb2.BeginToolWaitRequest, program_service_pb2.EndToolWaitRequest


@dataclass
class Rig:
    plane: Plane
    address: str
    client: AsyncClient


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    plane = Plane()
    async with served(plane) as address, AsyncClient(address) as client:
        yield Rig(plane, address, client)


async def test_a_tool_wait_reaches_the_control_plane_with_its_tool_its_thread_and_its_length(rig: Rig) -> None:
    async with agentserving.program("triage", program_id="p", control_plane=rig.address) as p:
        async with p.tool_wait("search", expected_s=2):
            assert [type(request) for request in rig.plane.received[-1:]] == [BeginToolWait]
        with p.thread("critic"):
            async with p.tool_wait("browse"):
                pass
    begun, critic = rig.plane.of(BeginToolWait)
    assert (begun.program_id, begun.thread_id, begun.tool, begun.expected_us) == ("p", "main", "search", 2_000_000)
    assert (critic.thread_id, critic.tool, critic.expected_us) == ("critic", "browse", 0)
    assert [(end.program_id, end.thread_id) for end in rig.plane.of(EndToolWait)] == [("p", "main"), ("p", "critic")]


async def test_a_cancelled_program_is_refused_with_its_reason(rig: Rig) -> None:
    rig.plane.refusal = (grpc.StatusCode.PERMISSION_DENIED, "PROGRAM_CANCELLED")
    with pytest.raises(agentserving.PermissionDeniedError) as refused:
        await rig.client.admit("p")
    assert refused.value.reason == "PROGRAM_CANCELLED"
    assert isinstance(refused.value.__cause__, grpc.RpcError)


async def test_an_engine_is_drained_and_undrained(rig: Rig) -> None:
    assert (await rig.client.drain_engine("e1")).state is EngineState.DRAINING
    assert (await rig.client.undrain_engine("e1")).state is EngineState.READY
    assert [request.engine_id for request in rig.plane.received] == ["e1", "e1"]


async def test_a_program_says_which_tool_it_waits_for_and_an_engine_why_it_is_in_its_state(rig: Rig) -> None:
    rig.plane.program.CopyFrom(
        types_pb2.Program(program_id="p", state=types_pb2.PROGRAM_STATE_TOOL_WAIT, tool="search")
    )
    program = await rig.client.get_program("p")
    assert (program.state, program.tool) == (ProgramState.TOOL_WAIT, "search")
    rig.plane.overview.engines.add(
        engine_id="e1", state=types_pb2.ENGINE_STATE_DOWN, state_reason="it has ended",
        load=types_pb2.EngineLoad(prefill_us_per_token=32.5),
    )  # fmt: skip
    (engine,) = (await rig.client.get_overview()).engines
    assert (engine.state, engine.state_reason) == (EngineState.DOWN, "it has ended")
    assert engine.load.prefill_us_per_token == 32.5


@pytest.mark.parametrize("kind", [EngineState, Outcome, ProgramState])
def test_every_value_of_the_contract_has_a_name_here(kind: type[EngineState]) -> None:
    name = {"EngineState": "ENGINE_STATE", "Outcome": "OUTCOME", "ProgramState": "PROGRAM_STATE"}[kind.__name__]
    wire = getattr(types_pb2, kind.__name__)
    assert {f"{name}_{each.name}": each.value for each in kind} == dict(wire.items())


async def test_values_of_a_newer_server_read_as_unspecified(rig: Rig) -> None:
    overview = admin_service_pb2.GetOverviewResponse(
        policy=types_pb2.PolicyVersion(
            version=3,
            policy=types_pb2.Policy(name="newer", accounting=99, order=99),
            balancer=99,  # type: ignore[arg-type]
        ),
        engines=[types_pb2.Engine(engine_id="e1", state=99)],  # type: ignore[arg-type]
    )
    rig.plane.overview = overview
    found = await rig.client.get_overview()
    assert found.engines[0].state is EngineState.UNSPECIFIED
    assert (found.policy.version, found.policy.policy.name, found.policy.balancer) == (3, "newer", 0)
    assert "policy." in found.policy.policy_error
    rig.plane.program.CopyFrom(types_pb2.Program(program_id="p", state=99, outcome=99))  # type: ignore[arg-type]
    program = await rig.client.get_program("p")
    assert (program.state, program.outcome) == (ProgramState.UNSPECIFIED, Outcome.UNSPECIFIED)


async def test_a_programs_class_of_service_goes_with_its_opening_and_with_each_call(rig: Rig) -> None:
    async with agentserving.program("nightly", service_class="Batch", control_plane=rig.address) as p:
        assert p.headers()["x-agentserving-service"] == "batch"
    async with agentserving.program("plain", control_plane=rig.address) as p:
        assert "x-agentserving-service" not in p.headers()
    opened = rig.plane.of(program_service_pb2.OpenProgramRequest)
    assert [request.service_class for request in opened] == [types_pb2.SERVICE_CLASS_BATCH, 0]
    with pytest.raises(ValueError, match="use interactive, standard or batch"):
        agentserving.program("p", service_class="bulk")
