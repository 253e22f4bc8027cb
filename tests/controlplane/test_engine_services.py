"""Drains, health and tool waits over the real services, and what outlasts a restart of the control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agentserving.v1 import admin_service_pb2, call_service_pb2, engine_service_pb2, program_service_pb2, types_pb2
from grpc import StatusCode
from support.served_plane import PlayedEngine, ServedPlane, refusal

READY, DRAINING, DOWN, LOADING, STUCK = (
    types_pb2.ENGINE_STATE_READY,
    types_pb2.ENGINE_STATE_DRAINING,
    types_pb2.ENGINE_STATE_DOWN,
    types_pb2.ENGINE_STATE_LOADING,
    types_pb2.ENGINE_STATE_STUCK,
)


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as plane:
        yield plane


async def engine_states(served: ServedPlane) -> dict[str, tuple[int, str]]:
    engines = (await served.admin.ListEngines(admin_service_pb2.ListEnginesRequest())).engines
    return {engine.engine_id: (engine.state, engine.state_reason) for engine in engines}


async def test_a_drain_outlasts_boots_and_restarts_until_it_is_ended(served: ServedPlane) -> None:
    await served.attach("e1")
    drained = await served.admin.DrainEngine(admin_service_pb2.DrainEngineRequest(engine_id="e1"))
    assert drained.engine.state == DRAINING
    await served.restart()
    await served.attach("e1", "b2")
    assert (await engine_states(served))["e1"] == (DRAINING, "drained by an administrator")
    assert (await refusal(served.admit("new", implicit=True))).reason == "NO_ENGINE"
    undrained = await served.admin.UndrainEngine(admin_service_pb2.UndrainEngineRequest(engine_id="e1"))
    assert (undrained.engine.state, undrained.engine.state_reason) == (READY, "")
    await served.restart()
    await served.attach("e1")
    assert (await engine_states(served))["e1"] == (READY, "")


async def test_a_drain_can_be_ended_while_its_engine_is_away(served: ServedPlane) -> None:
    await served.attach("e1")
    await served.admin.DrainEngine(admin_service_pb2.DrainEngineRequest(engine_id="e1"))
    await served.restart()
    await served.admin.UndrainEngine(admin_service_pb2.UndrainEngineRequest(engine_id="e1"))
    await served.attach("e1")
    assert (await engine_states(served))["e1"] == (READY, "")
    refused = await refusal(served.admin.UndrainEngine(admin_service_pb2.UndrainEngineRequest(engine_id="unknown")))
    assert (refused.code, refused.reason) == (StatusCode.NOT_FOUND, "ENGINE_NOT_FOUND")


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ({"health": types_pb2.ENGINE_HEALTH_DOWN, "health_reason": "exit code 137"}, DOWN),
        ({"health": types_pb2.ENGINE_HEALTH_LOADING, "health_reason": "loading weights"}, LOADING),
        ({"health": types_pb2.ENGINE_HEALTH_STUCK, "health_reason": "no step for 6 s"}, STUCK),
        ({"stuck": True}, STUCK),
    ],
)
async def test_what_a_sidecar_reports_of_its_engine_is_its_state_and_gets_it_no_calls(
    served: ServedPlane, report: dict[str, object], state: int
) -> None:
    sick = await served.attach("e1")
    await served.attach("e2")
    await sick.say(report=engine_service_pb2.Report(seq=1, **report))  # type: ignore[arg-type]
    await sick.hear("ack")
    found, reason = (await engine_states(served))["e1"]
    assert found == state
    assert reason == report.get("health_reason", "the engine has work but makes no step")
    assert {(await served.admit("p", implicit=True)).engine_id for _ in range(8)} == {"e2"}
    await sick.say(report=engine_service_pb2.Report(seq=2))
    await sick.hear("ack")
    assert (await engine_states(served))["e1"] == (READY, "")


async def test_an_engine_may_attach_before_it_serves(served: ServedPlane) -> None:
    engine = PlayedEngine(served.engine_service)
    hello = engine_service_pb2.EngineHello(engine_id="e1", health=types_pb2.ENGINE_HEALTH_LOADING)
    await engine.say(hello=hello)
    await engine.hear("welcome")
    assert (await engine_states(served))["e1"] == (LOADING, "the engine process is starting")
    refused = await refusal(served.admit("p", implicit=True))
    assert (refused.code, refused.reason, refused.retry_after_s) == (StatusCode.UNAVAILABLE, "NO_ENGINE", 1.0)
    await engine.hello("e1")
    assert (await served.admit("p", implicit=True)).engine_id == "e1"


async def test_gateways_learn_of_an_engine_that_is_down(served: ServedPlane) -> None:
    engine = await served.attach("e1")
    stream = served.calls.Admissions()
    while [e.state for e in (await stream.read()).engines.engines] != [READY]:
        pass
    await engine.say(report=engine_service_pb2.Report(health=types_pb2.ENGINE_HEALTH_DOWN))
    while [e.state for e in (await stream.read()).engines.engines] != [DOWN]:
        pass
    stream.cancel()


async def test_a_tool_wait_reaches_the_programs_engines_and_its_row(served: ServedPlane) -> None:
    engine = await served.attach("e1")
    elsewhere = await served.attach("e2", draining=True)
    await served.open("root")
    await served.open("child", parent="root")
    call = await served.admit("child")
    await engine.report(call, 1, root_program_id="root", outcome=1)
    begin = program_service_pb2.BeginToolWaitRequest(
        program_id="child", thread_id="t", tool="search", expected_us=2_000_000
    )
    await served.programs.BeginToolWait(begin)
    wait = (await engine.hear("tool_wait")).directive.tool_wait
    assert (wait.tenant, wait.root_program_id, wait.program_id, wait.thread_id) == ("default", "root", "child", "t")
    assert (wait.waiting, wait.expected_us) == (True, 2_000_000)
    row = await served.get("child")
    assert (row.state, row.tool) == (types_pb2.PROGRAM_STATE_TOOL_WAIT, "search")
    await served.programs.EndToolWait(program_service_pb2.EndToolWaitRequest(program_id="child", thread_id="t"))
    assert not (await engine.hear("tool_wait")).directive.tool_wait.waiting
    assert (await served.get("child")).tool == ""
    await served.programs.BeginToolWait(begin)
    await engine.hear("tool_wait")
    await served.admit("child")
    assert not (await engine.hear("tool_wait")).directive.tool_wait.waiting, "a new call ends the wait"
    await served.admin.DrainEngine(admin_service_pb2.DrainEngineRequest(engine_id="e2"))
    elsewhere.stream.cancel()


async def test_the_engines_of_a_program_and_its_sub_agents_hear_that_it_has_ended(served: ServedPlane) -> None:
    engine = await served.attach("e1")
    await served.open("root")
    await served.open("child", parent="root")
    await engine.report(await served.admit("child"), 1, root_program_id="root", outcome=1)
    await served.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id="root"))
    ended = (await engine.hear("program_ended")).directive.program_ended
    assert (ended.tenant, ended.root_program_id) == ("default", "root")


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [({"tool": "t" * 129}, "TOOL_TOO_LONG", "tool"), ({"thread_id": "t" * 129}, "BAD_THREAD_ID", "thread_id")],
)
async def test_a_tool_wait_that_is_too_long_to_store_is_refused(
    served: ServedPlane, fields: dict[str, str], reason: str, field: str
) -> None:
    await served.open("p")
    request = program_service_pb2.BeginToolWaitRequest(program_id="p", **fields)
    refused = await refusal(served.programs.BeginToolWait(request))
    assert (refused.reason, refused.field) == (reason, field)


async def test_a_call_of_a_cancelled_program_is_denied(served: ServedPlane) -> None:
    await served.attach("e1")
    await served.open("p")
    await served.programs.CancelProgram(program_service_pb2.CancelProgramRequest(program_id="p"))
    for implicit in (True, False):
        refused = await refusal(served.admit("p", implicit=implicit))
        assert (refused.code, refused.reason) == (StatusCode.PERMISSION_DENIED, "PROGRAM_CANCELLED")
    stream = served.calls.Admissions()
    admit = call_service_pb2.AdmitCallRequest(program_id="p", implicit=True)
    await stream.write(call_service_pb2.AdmissionsRequest(stream_id=3, admit=admit))
    while not (response := await stream.read()).HasField("error"):
        pass
    assert (response.error.code, response.error.reason) == (7, "PROGRAM_CANCELLED")
    stream.cancel()
    assert (await served.open("p")).state == types_pb2.PROGRAM_STATE_ACTIVE
    assert (await served.admit("p")).call_id
