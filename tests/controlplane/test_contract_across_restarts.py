"""Idempotency keys, pauses, threads, watching and listing: the contract, also across a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from agentserving.contract.ids import ProgramKey
from agentserving.v1 import admin_service_pb2, call_service_pb2, program_service_pb2, types_pb2
from agentserving_controlplane.api import servicing
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table import history, program_index
from agentserving_controlplane.table.history import History
from controlplane.table_builders import DEFAULT, key
from grpc import StatusCode
from support.served_plane import PlayedEngine, ServedPlane, refusal, until_end

PAUSED, ACTIVE, TOOL_WAIT = (
    types_pb2.PROGRAM_STATE_PAUSED,
    types_pb2.PROGRAM_STATE_ACTIVE,
    types_pb2.PROGRAM_STATE_TOOL_WAIT,
)


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as plane:
        yield plane


async def paused_for(engine: PlayedEngine) -> list[tuple[str, str]]:
    """What an engine that says hello again is welcomed with."""
    return [(key.tenant, key.program_id) for key in (await engine.hello("e1")).paused]


async def landed(served: ServedPlane) -> None:
    await served.plane.commits.flush()


# -- idempotency keys ------------------------------------------------------------------------------------------------


async def test_one_key_opens_one_program_also_when_its_id_is_generated(served: ServedPlane) -> None:
    first = await served.open("", name="n", idempotency_key="k")
    assert (await served.open("", name="n", idempotency_key="k")).program_id == first.program_id
    await served.restart()
    assert (await served.open("", name="n", idempotency_key="k")).program_id == first.program_id
    for other in ({"name": "m"}, {"program_id": first.program_id, "name": "n"}, {}):
        refused = await refusal(served.open(**{"program_id": "", **other}, idempotency_key="k"))
        assert (refused.code, refused.reason) == (StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert (await served.open("", name="n")).program_id != first.program_id


async def test_keys_of_different_tenants_are_independent(served: ServedPlane) -> None:
    await served.open("p", idempotency_key="k")
    request = program_service_pb2.OpenProgramRequest(program_id="q", idempotency_key="k")
    await served.programs.OpenProgram(request, metadata=[("x-agentserving-tenant", "other")])


async def test_a_retried_admission_admits_once(served: ServedPlane) -> None:
    await served.open("p")
    engine = await served.attach()
    first = await served.admit("p", idempotency_key="k", thread_id="t")
    assert await served.admit("p", idempotency_key="k", thread_id="t") == first
    refused = await refusal(served.admit("p", idempotency_key="k", thread_id="another"))
    assert (refused.code, refused.reason) == (StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert len((await served.get("p")).calls) == 1
    await engine.report(first, 1, service_us=1, outcome=1)
    assert (await served.admit("p", idempotency_key="k", thread_id="t")).call_id == first.call_id
    assert (await served.get("p")).calls_completed == 1


async def test_a_retried_admission_finds_its_call_after_a_restart(served: ServedPlane) -> None:
    await served.open("p")
    await served.attach()
    first = await served.admit("p", idempotency_key="k")
    await landed(served)
    await served.restart()
    refused = await refusal(served.admit("p", idempotency_key="k"))
    assert (refused.code, refused.reason, refused.retry_after_s) == (StatusCode.UNAVAILABLE, "NO_ENGINE", 1.0)
    await served.attach()
    again = await served.admit("p", idempotency_key="k")
    assert (again.call_id, again.engine_id) == (first.call_id, first.engine_id)


async def test_a_policy_applied_again_with_its_key_is_applied_once(served: ServedPlane) -> None:
    request = admin_service_pb2.ApplyPolicyRequest(policy=types_pb2.Policy(name="mlfq"), idempotency_key="k")
    first = await served.admin.ApplyPolicy(request)
    await served.admin.ApplyPolicy(admin_service_pb2.ApplyPolicyRequest(policy=types_pb2.Policy(name="fcfs")))
    await served.restart()
    assert (await served.admin.ApplyPolicy(request)).policy == first.policy
    in_force = (await served.admin.GetPolicy(admin_service_pb2.GetPolicyRequest())).policy
    assert (in_force.version, in_force.policy.name) == (3, "fcfs")
    request.balancer = types_pb2.BALANCER_ROUND_ROBIN
    assert (await refusal(served.admin.ApplyPolicy(request))).reason == "IDEMPOTENCY_KEY_REUSED"


class FrozenStore(MemoryStore):
    """Never answers a commit."""

    async def commit(self, epoch: int, writes: object) -> int:
        await asyncio.Event().wait()
        return 0


async def test_a_mutation_without_a_deadline_is_answered_when_the_store_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servicing, "DEFAULT_DEADLINE_S", 0.2)
    async with ServedPlane(FrozenStore()) as served:
        refused = await refusal(served.open("p", idempotency_key="k"))
        assert (refused.code, refused.reason, refused.retry_after_s) == (
            StatusCode.DEADLINE_EXCEEDED,
            "STORE_SLOW",
            1.0,
        )
        assert (await served.get("p")).program_id == "p"


async def test_a_gateways_stream_gives_the_same_refusals_and_speaks_for_tenants(served: ServedPlane) -> None:
    await served.open("p")
    stream = served.calls.Admissions()

    async def ask(**request: Any) -> call_service_pb2.AdmissionsResponse:
        await stream.write(call_service_pb2.AdmissionsRequest(stream_id=7, **request))
        while (response := await stream.read()).stream_id != 7:
            pass
        found: call_service_pb2.AdmissionsResponse = response
        return found

    error = (await ask(admit=call_service_pb2.AdmitCallRequest(program_id="p"))).error
    assert (error.code, error.reason, error.retry_after.ToMilliseconds()) == (14, "NO_ENGINE", 1000)
    await served.attach()
    error = (await ask(admit=call_service_pb2.AdmitCallRequest(program_id="p", tenant="other"))).error
    assert (error.code, error.reason) == (5, "PROGRAM_NOT_FOUND")
    error = (await ask(admit=call_service_pb2.AdmitCallRequest(program_id="p", tenant="no\0tenant"))).error
    assert (error.code, error.reason) == (3, "BAD_TENANT")
    admitted = (
        await ask(admit=call_service_pb2.AdmitCallRequest(program_id="q", tenant="other", implicit=True))
    ).admitted
    end = call_service_pb2.EndCallRequest(call_id=admitted.call_id, tenant="other", never_started=True)
    assert (await ask(end=end)).HasField("ended")
    assert not served.plane.table.open_calls
    stream.cancel()


# -- threads, parents and claims -------------------------------------------------------------------------------------


async def test_a_thread_id_used_again_is_the_same_thread_and_old_threads_make_room(served: ServedPlane) -> None:
    await served.open("p")
    await served.attach()
    for number in range(600):
        call = await served.admit("p", thread_id=f"t{number % 550}")
        await served.calls.EndCall(call_service_pb2.EndCallRequest(call_id=call.call_id, never_started=True))
    threads = {thread.thread_id: thread.calls for thread in (await served.get("p")).threads}
    assert len(threads) == 512
    assert threads["t549"] == 1
    assert threads["t49"] >= 1


async def test_a_claim_is_admitted_without_its_unknown_parts(served: ServedPlane) -> None:
    await served.attach()
    first = await served.admit("claimed", implicit=True, name="ä" * 200, parent_program_id="claimed")
    known = first.call_id
    second = await served.admit(
        "claimed", implicit=True, thread_id="t" * 500, parent_call_ids=["nonsense", "other.1.0", known, *[known] * 70]
    )
    row = await served.get("claimed")
    assert row.parent_program_id == ""
    call = {call.call_id: call for call in row.calls}[second.call_id]
    assert call.parent_call_ids == [known] * 64
    await served.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id="claimed"))
    assert (await served.admit("claimed", implicit=True)).program_id == "claimed"
    assert (await served.get("claimed")).state == ACTIVE


# -- pauses ----------------------------------------------------------------------------------------------------------


def pause(served: ServedPlane, program_id: str) -> Awaitable[Any]:
    return served.programs.PauseProgram(program_service_pb2.PauseProgramRequest(program_id=program_id))


def resume(served: ServedPlane, program_id: str) -> Awaitable[Any]:
    return served.programs.ResumeProgram(program_service_pb2.ResumeProgramRequest(program_id=program_id))


async def test_a_pause_covers_the_whole_tree_on_every_engine(served: ServedPlane) -> None:
    await served.open("root")
    await served.open("child", parent="root")
    engine = await served.attach()
    assert (await pause(served, "child")).program.state == PAUSED
    pause_message = (await engine.hear("pause")).directive.pause
    assert (pause_message.tenant, pause_message.program_id, pause_message.paused) == ("default", "root", True)
    assert [(await served.get(p)).state for p in ("root", "child")] == [PAUSED, PAUSED]
    assert (await served.admit("child")).call_id
    await resume(served, "root")
    assert not (await engine.hear("pause")).directive.pause.paused
    assert (await served.get("child")).state == ACTIVE


async def test_an_engine_that_attaches_learns_every_pause_and_so_every_resumption(served: ServedPlane) -> None:
    for program in ("a", "b"):
        await served.open(program)
        await pause(served, program)
    engine = await served.attach("e1")
    engine.stream.cancel()
    await resume(served, "a")
    assert await paused_for(await served.attach("e1")) == [("default", "b")]
    await served.restart()
    assert await paused_for(await served.attach("e1")) == [("default", "b")]
    assert (await served.get("b")).state == PAUSED


async def test_a_tool_wait_does_not_end_a_pause_nor_a_resume_a_tool_wait(served: ServedPlane) -> None:
    await served.open("p")
    await pause(served, "p")
    await served.programs.BeginToolWait(program_service_pb2.BeginToolWaitRequest(program_id="p"))
    assert (await served.get("p")).state == PAUSED
    await resume(served, "p")
    assert (await served.get("p")).state == TOOL_WAIT


@pytest.mark.parametrize("end", ["CloseProgram", "CancelProgram"])
async def test_the_end_of_a_program_ends_its_pause(served: ServedPlane, end: str) -> None:
    await served.open("p")
    engine = await served.attach()
    await pause(served, "p")
    assert (await engine.hear("pause")).directive.pause.paused
    await getattr(served.programs, end)(getattr(program_service_pb2, f"{end}Request")(program_id="p"))
    assert not (await engine.hear("pause")).directive.pause.paused
    assert not served.plane.table.index.paused


# -- listing and watching --------------------------------------------------------------------------------------------


async def test_pages_list_each_program_that_stays_once_whatever_changes(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_index, "MAX_PAGE_SCAN", 7)
    stays = [f"p{number:03}" for number in range(0, 60, 2)]
    for program in stays:
        await served.open(program)
    seen: list[str] = []
    token, number = "", 1
    while True:
        request = program_service_pb2.ListProgramsRequest(page_size=5, page_token=token)
        page = await served.programs.ListPrograms(request)
        seen += [program.program_id for program in page.programs]
        token = page.next_page_token
        if not token:
            break
        await served.open(f"p{number:03}")
        number += 2
        await served.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id=f"p{number - 2:03}"))
    assert seen == sorted(set(seen))
    assert set(stays) <= set(seen)


async def watched(served: ServedPlane, after: int, wanted: Callable[[set[str]], bool]) -> tuple[int, set[str]]:
    """(revision, changed ids) once they are as wanted."""
    seen: set[str] = set()
    stream = served.programs.WatchPrograms(program_service_pb2.WatchProgramsRequest(after_revision=after))
    async with asyncio.timeout(10):
        async for response in stream:
            seen |= {program.program_id for program in response.changed}
            if wanted(seen):
                stream.cancel()
                return response.revision, seen
    raise AssertionError(seen)


async def test_a_watch_resumes_where_it_ended_and_lists_again_after_a_restart(served: ServedPlane) -> None:
    start = (await served.programs.ListPrograms(program_service_pb2.ListProgramsRequest())).revision
    await served.open("a")
    revision, _ = await watched(served, start, lambda seen: seen == {"a"})
    await served.open("b")
    await watched(served, revision, lambda seen: seen == {"b"})
    await served.restart()
    for gone in (revision, 1, 2**62):
        refused = await refusal(watched(served, gone, lambda seen: False))
        assert (refused.code, refused.reason) == (StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")


async def test_a_watcher_that_never_reads_costs_no_memory_and_lists_again(served: ServedPlane) -> None:
    served.plane.history = History(served.plane.revision, kept=50)
    await served.open("p", name="n" * 100)
    stream = served.programs.WatchPrograms(
        program_service_pb2.WatchProgramsRequest(after_revision=served.plane.revision - 1)
    )
    assert (await stream.read()).changed
    row = served.plane.table.rows[ProgramKey("default", "p")]  # type: ignore[arg-type]
    row.engines = ["e" * 50_000]
    for number in range(300):
        served.plane.table.programs.begin_tool_wait(row, f"tool {number}", 0, served.plane.now())
        served.plane.settle()
        if number < 200:
            # Time for a server that would buffer to do so; then a burst that no reader can keep up with.
            await asyncio.sleep(0)
    assert len(served.plane.history._changes) == 50
    refused = await refusal(until_end(stream))
    assert (refused.code, refused.reason) == (StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")


def test_a_look_at_the_history_costs_only_what_is_new() -> None:
    class Counting(list[tuple[int, ProgramKey, bool]]):
        taken = 0

        def __reversed__(self) -> Any:
            for entry in super().__reversed__():
                Counting.taken += 1
                yield entry

    kept = history.History(0)
    for number in range(20_000):
        kept.begin()
        kept.note(key(f"p{number}"), removed=False)
    kept._changes = Counting(kept._changes)  # type: ignore[assignment]
    assert kept.after(19_998, DEFAULT) == {"p19999": False, "p19998": False}
    assert Counting.taken == 3
