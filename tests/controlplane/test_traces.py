"""Where a program's time went, what became of its prefixes, and what is remembered of its calls."""

from __future__ import annotations

from typing import Any

import grpc
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.phases import PhaseKind, PrefixMiss
from agentserving.v1 import call_service_pb2 as call_pb
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import types_pb2
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome
from agentserving_controlplane.table.traces import MAX_PER_PROGRAM, Finished, Traces
from controlplane.table_builders import S, admit, at, key, open_program, report_of
from hypothesis import given
from hypothesis import strategies as st
from support.served_plane import ServedPlane, refusal

PHASES = ((PhaseKind.QUEUE, 3), (PhaseKind.PREFILL, 5), (PhaseKind.DECODE, 7), (PhaseKind.PREEMPTED, 11))


def run(
    table: ProcessTable, program: str, engine: str = "e1", *, begin: int = 0, end: int = 0, **report: Any
) -> CallRow:
    call = admit(table, program, engine, now=begin, thread_id=report.pop("thread_id", ""), gateway_us=2)
    table.report(report_of(call, program, **{"phases": PHASES, **report}), at(end))
    return call


def missed(table: ProcessTable, program: str = "p") -> dict[int, int]:
    return {miss: calls for miss, (calls, _) in table.rows[key(program)].prefix_misses.items()}


def test_a_programs_time_is_the_sum_of_its_calls_phases_and_the_time_between_them() -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    run(table, "p", begin=10 * S, end=20 * S)
    run(table, "p", begin=25 * S, end=30 * S)
    times = table.rows[key("p")].times
    assert (times.gateway_us, times.queue_us, times.prefill_us, times.decode_us) == (4, 6, 10, 14)
    assert (times.preempted_us, times.held_us, times.tools_us) == (22, 0, 5 * S)


def test_the_time_in_which_a_program_was_closed_is_not_its_tools() -> None:
    table = ProcessTable(1)
    row = open_program(table, "p")
    run(table, "p", begin=1 * S, end=2 * S)
    table.programs.close(row, Outcome.COMPLETED, at(3 * S))
    admit(table, "p", now=100 * S, implicit=True)
    assert row.times.tools_us == 0


def test_phases_of_a_report_that_comes_late_change_nothing() -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    call = admit(table, "p")
    more = report_of(call, "p", outcome=Outcome.NONE, phases=PHASES)
    table.report(more, at(2))
    table.report(report_of(call, "p", outcome=Outcome.NONE, phases=PHASES[:2]), at(3))
    assert call.phases == list(PHASES)


def test_a_first_context_on_an_engine_is_told_apart_from_a_first_call() -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    run(table, "p", "e1", prefix_miss=PrefixMiss.FIRST)
    assert missed(table) == {PrefixMiss.FIRST: 1}
    run(table, "p", "e2", prefix_miss=PrefixMiss.FIRST)
    assert missed(table) == {PrefixMiss.FIRST: 1, PrefixMiss.OTHER_ENGINE: 1}
    # It ran here before, and the engine knows nothing of it: it has restarted.
    run(table, "p", "e1", prefix_miss=PrefixMiss.FIRST)
    assert missed(table)[PrefixMiss.UNSPECIFIED] == 1
    run(table, "p", "e3", prefix_miss=PrefixMiss.FIRST, thread_id="side")
    assert missed(table)[PrefixMiss.FIRST] == 2


def test_calls_at_the_same_time_are_all_first() -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    calls = [admit(table, "p") for _ in range(3)]
    for call in calls:
        table.report(report_of(call, "p", prefix_miss=PrefixMiss.FIRST), at(1))
    assert missed(table) == {PrefixMiss.FIRST: 3}


def test_tokens_that_were_evicted_are_counted_as_lost() -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    run(table, "p", prefix_miss=PrefixMiss.EVICTED, common_tokens=100, cached_tokens=30)
    run(table, "p", prefix_miss=PrefixMiss.DIVERGED, common_tokens=100, cached_tokens=100)
    assert table.rows[key("p")].prefix_misses[PrefixMiss.EVICTED] == (1, 70)
    assert table.rows[key("p")].prefix_misses[PrefixMiss.DIVERGED] == (1, 0)


def test_a_try_on_the_next_engine_has_phases_of_its_own() -> None:
    table = ProcessTable(1)
    open_program(table, "p")
    call = admit(table, "p")
    call.engines = [call.engine_id, "e2"]  # type: ignore[list-item]
    table.report(report_of(call, "p", outcome=Outcome.NONE, phases=PHASES, arrive_unix_us=5), at(1))
    table.report(report_of(call, "p", engine_id="e2", outcome=Outcome.NONE, phases=PHASES[:1]), at(2))
    assert (call.phases, call.arrive_us) == (list(PHASES[:1]), 0)


# -- what is remembered --------------------------------------------------------------------------------------------


def ended(number: int) -> Finished:
    call = CallRow(f"p.1.{number}", 1, "", "e1", 0, 0)  # type: ignore[arg-type]
    return Finished(call, Outcome.COMPLETED, number)


def test_a_program_remembers_its_newest_calls() -> None:
    traces = Traces()
    for number in range(MAX_PER_PROGRAM + 10):
        traces.ended(key("p"), ended(number))
    kept = traces.of(key("p")).finished
    assert [kept[0].end_us, kept[-1].end_us, len(traces)] == [10, MAX_PER_PROGRAM + 9, MAX_PER_PROGRAM]


def test_a_busy_tenant_makes_room_before_others() -> None:
    traces = Traces(limit=20)
    quiet = ProgramKey(Tenant("quiet"), ProgramId("p"))
    traces.ended(quiet, ended(0))
    for number in range(100):
        traces.ended(ProgramKey(Tenant("busy"), ProgramId(f"p{number}")), ended(number))
    assert len(traces.of(quiet).finished) == 1
    assert len(traces) == 20


ACTS = st.tuples(st.sampled_from("ab"), st.sampled_from("pqr"), st.sampled_from(["end", "wait", "over", "gone"]))


@given(st.lists(ACTS))
def test_traces_count_what_they_hold(acts: list[tuple[str, str, str]]) -> None:
    traces = Traces(limit=7)
    for number, (tenant, program, act) in enumerate(acts):
        of = ProgramKey(Tenant(tenant), ProgramId(program))
        match act:
            case "end":
                traces.ended(of, ended(number))
            case "wait":
                traces.tool_wait_began(of, "search", number + 1)
            case "over":
                traces.tool_wait_ended(of, number + 1)
            case "gone":
                traces.forget(of)
        assert len(traces) <= 7
        kept = [traces.of(ProgramKey(Tenant(t), ProgramId(p))) for t in "ab" for p in "pqr"]
        assert len(traces) == sum(each.size for each in kept)
        assert all(sum(not wait.end_us for wait in each.tool_waits) <= 1 for each in kept)


# -- GetTrace ------------------------------------------------------------------------------------------------------


async def test_a_trace_has_the_tree_with_finished_calls_calls_in_flight_and_tool_waits() -> None:
    async with ServedPlane() as plane:
        table = plane.plane.table
        open_program(table, "p")
        open_program(table, "p/sub", parent="p")
        run(table, "p", prefix_miss=PrefixMiss.NONE, common_tokens=64)
        run(table, "p/sub")
        live = admit(table, "p", trace_parent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
        await plane.programs.BeginToolWait(pb.BeginToolWaitRequest(program_id="p/sub", tool="search"))
        trace = await plane.programs.GetTrace(pb.GetTraceRequest(program_id="p"))
        program, sub = trace.programs
        assert [program.program.program_id, sub.program.program_id] == ["p", "p/sub"]
        (finished,) = program.finished
        assert finished.outcome == types_pb2.OUTCOME_COMPLETED
        assert [(phase.kind, phase.duration_us) for phase in finished.call.phases] == list(PHASES)
        assert (finished.call.prefix_miss, finished.call.common_tokens) == (types_pb2.PREFIX_MISS_NONE, 64)
        assert [call.call_id for call in program.program.calls] == [live.call_id]
        assert program.program.calls[0].trace_parent.startswith("00-aaaa")
        (wait,) = sub.tool_waits
        assert (wait.tool, wait.HasField("end_time")) == ("search", False)
        await plane.programs.EndToolWait(pb.EndToolWaitRequest(program_id="p/sub"))
        trace = await plane.programs.GetTrace(pb.GetTraceRequest(program_id="p/sub"))
        assert [each.program.program_id for each in trace.programs] == ["p/sub"]
        assert trace.programs[0].tool_waits[0].HasField("end_time")
        page = exposition(plane.plane).decode()
        assert 'agentserving_prefix_misses_total{reason="none"} 1.0' in page
        assert 'agentserving_call_time_seconds_total{phase="decode"} 1.4e-05' in page


async def test_a_trace_belongs_to_the_programs_tenant() -> None:
    async with ServedPlane() as plane:
        open_program(plane.plane.table, "p")
        other = [("x-agentserving-tenant", "other")]
        refused = await refusal(plane.programs.GetTrace(pb.GetTraceRequest(program_id="p"), metadata=other))
        assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_large_tree_fits_into_one_message() -> None:
    async with ServedPlane() as plane:
        table = plane.plane.table
        open_program(table, "p")
        for number in range(150):
            open_program(table, f"p/{number}", parent="p", now=number)
            for _ in range(20):
                run(table, f"p/{number}")
        trace = await plane.programs.GetTrace(pb.GetTraceRequest(program_id="p"))
        assert (len(trace.programs), trace.programs_left_out) == (100, 51)
        finished = sum(len(each.finished) for each in trace.programs)
        left_out = sum(each.calls_left_out for each in trace.programs)
        assert finished <= 2000
        assert finished + left_out == 99 * 20
        assert trace.ByteSize() < 3 << 20


async def test_a_repeated_admission_is_the_same_however_long_it_was_held_before() -> None:
    async with ServedPlane() as plane:
        engine = await plane.attach("e1")
        asked = call_pb.AdmitCallRequest(program_id="p", implicit=True, idempotency_key="k", gateway_us=5)
        first = await plane.calls.AdmitCall(asked)
        asked.gateway_us = 70
        assert (await plane.calls.AdmitCall(asked)).call_id == first.call_id
        engine.stream.cancel()
