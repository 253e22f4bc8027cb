"""Watchers of endings receive every call and program that ends, or the number that they missed."""

from __future__ import annotations

import asyncio

import pytest
from agentserving import AsyncClient, ClosedProgram, EndedCall, Endings, Outcome
from agentserving.contract.ids import ProgramId, Tenant
from agentserving.v1 import call_service_pb2, program_service_pb2
from agentserving_controlplane.table.endings import ClosedProgram as Closed
from agentserving_controlplane.table.endings import Endings as Kept
from agentserving_controlplane.table.endings import Origin
from agentserving_controlplane.table.states import Outcome as StoredOutcome
from controlplane.table_builders import at, open_program
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served_plane import ServedPlane

pytestmark = pytest.mark.timeout(60)


def ending(number: int) -> Closed:
    program = ProgramId(f"p{number}")
    origin = Origin(program_id=program, name="", parent=ProgramId(""), root=program, open_us=1, root_open_us=1)
    return Closed(origin, StoredOutcome.COMPLETED, number, 0)


def numbers(endings: list[object]) -> list[int]:
    return [each.close_us for each in endings if isinstance(each, Closed)]


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.lists(st.sampled_from(["note a", "note b", "read a", "read b"]), max_size=60),
    st.integers(1, 4),
)
def test_endings_read_and_endings_lost_add_up_to_all_endings(kept: int, acts: list[str], most: int) -> None:
    endings, number = Kept(1000, kept), 0
    noted: dict[str, list[int]] = {"a": [], "b": []}
    heard: dict[str, list[int]] = {"a": [], "b": []}
    position, lost = {"a": 1000, "b": 1000}, {"a": 0, "b": 0}
    for act in [*acts, *["read a", "read b"] * 60]:
        what, tenant = act.split()
        if what == "note":
            number += 1
            endings.note(Tenant(tenant), ending(number))
            noted[tenant].append(number)
            continue
        news = endings.after(Tenant(tenant), position[tenant], most)
        position[tenant], lost[tenant] = news.position, lost[tenant] + news.lost
        heard[tenant] += numbers(list(news.endings))
        assert len(news.endings) <= most
        assert news.more == (position[tenant] < endings.newest(Tenant(tenant)))
    for tenant in "ab":
        assert len(heard[tenant]) + lost[tenant] == len(noted[tenant])
        assert [n for n in noted[tenant] if n in set(heard[tenant])] == heard[tenant]
    assert endings.lost == sum(lost.values())


def test_a_position_of_another_process_is_unknown() -> None:
    endings = Kept(1000)
    endings.note(Tenant("a"), ending(1))
    assert [endings.knows(Tenant("a"), position) for position in (999, 1000, 1001, 1002)] == [False, True, True, False]


async def next_ones(watch: object, count: int) -> list[EndedCall | ClosedProgram]:
    """So many endings, however many messages they come in; none may be lost."""
    found: list[EndedCall | ClosedProgram] = []
    while len(found) < count:
        message: Endings = await anext(watch)  # type: ignore[call-overload]
        assert not message.lost
        found += message.endings
    return found


async def test_an_ended_call_comes_with_its_counters_parents_and_program() -> None:
    async with ServedPlane() as plane, AsyncClient(f"127.0.0.1:{plane.port}") as client, asyncio.timeout(30):
        engine = await plane.attach()
        watch = client.watch_endings()
        assert (await anext(watch)).endings == ()
        await plane.open("p", name="triage")
        first = await plane.admit("p", thread_id="t")
        await engine.report(first, 1, outcome=1, prompt_tokens=100, cached_tokens=32, output_tokens=7, service_us=5)
        then = await plane.admit("p", thread_id="t", parent_call_ids=[first.call_id])
        await plane.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id="p"))
        await engine.report(then, 2, outcome=2, prompt_tokens=120, output_tokens=1)
        one, closed, two = await next_ones(watch, 3)
        await watch.aclose()
    assert isinstance(one, EndedCall)
    assert isinstance(two, EndedCall)
    assert isinstance(closed, ClosedProgram)
    assert (one.call.call_id, one.call.thread_id, one.call.engine_id) == (first.call_id, "t", "e1")
    assert (one.call.prompt_tokens, one.call.cached_tokens, one.call.output_tokens) == (100, 32, 7)
    assert (one.program.program_id, one.program.name, one.program.root_program_id) == ("p", "triage", "p")
    assert one.outcome is Outcome.COMPLETED
    assert one.program.open_time is not None
    assert one.call.admit_time is not None
    assert one.end_time is not None
    assert one.program.open_time <= one.call.admit_time <= one.end_time
    assert (two.call.parent_call_ids, two.outcome) == ((first.call_id,), Outcome.CANCELLED)
    assert (closed.program, closed.outcome, closed.calls_in_flight) == (one.program, Outcome.COMPLETED, 1)


async def test_calls_that_no_engine_ran_and_cancelled_trees_are_reported() -> None:
    async with ServedPlane() as plane, AsyncClient(f"127.0.0.1:{plane.port}") as client, asyncio.timeout(30):
        await plane.attach()
        await plane.open("p")
        await plane.open("p.sub", parent="p")
        watch = client.watch_endings()
        await anext(watch)
        call = await plane.admit("p.sub")
        await plane.calls.EndCall(call_service_pb2.EndCallRequest(call_id=call.call_id, never_started=True))
        await client.cancel_program("p")
        ended, one, other = await next_ones(watch, 3)
        await watch.aclose()
    assert isinstance(ended, EndedCall)
    assert (ended.call.prompt_tokens, ended.outcome) == (0, Outcome.CANCELLED)
    assert (ended.program.parent_program_id, ended.program.root_program_id) == ("p", "p")
    assert {each.program.program_id for each in (one, other)} == {"p", "p.sub"}
    assert one.outcome is Outcome.CANCELLED


async def test_endings_of_other_tenants_are_not_reported() -> None:
    async with ServedPlane() as plane, asyncio.timeout(30):
        await plane.attach()
        tenant = (("x-agentserving-tenant", "other"),)
        stream = plane.calls.WatchEndings(call_service_pb2.WatchEndingsRequest(), metadata=tenant)
        await stream.read()
        await plane.open("ours")
        await plane.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id="ours"))
        await plane.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="theirs"), metadata=tenant)
        request = program_service_pb2.CloseProgramRequest(program_id="theirs")
        await plane.programs.CloseProgram(request, metadata=tenant)
        message = await stream.read()
        assert [each.program.program.program_id for each in message.endings] == ["theirs"]
        assert message.lost == 0
        stream.cancel()


async def test_a_slow_reader_delays_no_one_and_learns_how_many_endings_it_missed() -> None:
    total = 3000
    async with ServedPlane() as plane, asyncio.timeout(50):
        plane.plane.endings = plane.plane.table.programs.endings = Kept(1000, 50)
        # One that reads its first message and then nothing for a long time; a long name fills what is underway.
        stream = plane.calls.WatchEndings(call_service_pb2.WatchEndingsRequest())
        await stream.read()
        table = plane.plane.table
        for number in range(total):
            row = open_program(table, f"p{number}", name="n" * 128, now=number + 1)
            table.programs.close(row, StoredOutcome.COMPLETED, at(number + 2))
            if number % 40 == 39:
                # Others are served meanwhile, though this reader is not.
                await plane.open(f"q{number}")
        heard = lost = 0
        while heard + lost < total:
            message = await stream.read()
            heard, lost = heard + len(message.endings), lost + message.lost
        assert heard + lost == total
        assert lost > 0
        assert plane.plane.endings.lost == lost
        stream.cancel()


async def test_a_broken_watch_resumes_and_a_restart_is_reported() -> None:
    async with ServedPlane() as plane, AsyncClient(f"127.0.0.1:{plane.port}") as client, asyncio.timeout(50):
        await plane.open("a")
        watch = client.watch_endings()
        seen = (await anext(watch)).position
        await watch.aclose()
        await plane.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id="a"))
        again = client.watch_endings(after_position=seen)
        message = await anext(again)
        assert [each.program.program_id for each in message.endings] == ["a"]
        assert (message.position, message.restarted) == (seen + 1, False)
        await plane.restart()
        message = await anext(again)
        assert (message.restarted, message.lost, message.endings) == (True, 0, ())
        await plane.open("b")
        await plane.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id="b"))
        (closed,) = await next_ones(again, 1)
        assert closed.program.program_id == "b"
        await again.aclose()
