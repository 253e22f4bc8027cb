"""What trace and get show of a run: at 80 columns, in order, and in the file for Perfetto."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving.client import messages
from agentserving.client.traces import Trace
from agentserving.contract.phases import PhaseKind, PrefixMiss
from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import types_pb2
from agentserving_cli.traces.chrome import chrome_trace
from agentserving_cli.traces.run_screen import run_screen
from agentserving_cli.traces.spans import Kind, bounds_us, program_spans
from agentserving_cli.traces.timeline import timeline_screen
from cli.test_screens import shown
from hypothesis import given
from hypothesis import strategies as st

MS = 1000
PHASES = [(PhaseKind.HELD, 50), (PhaseKind.QUEUE, 100), (PhaseKind.PREFILL, 200), (PhaseKind.DECODE, 400)]


def call(
    number: int, admit_ms: int, phases: list[tuple[int, int]], *, arrive_ms: int = 0, program: str = "p", **fields: Any
) -> types_pb2.Call:
    made = types_pb2.Call(
        call_id=f"{program}.1.{number}", engine_id="engine-0", prompt_tokens=1000, cached_tokens=500, output_tokens=20,
        phases=[types_pb2.Phase(kind=kind, duration_us=ms * MS) for kind, ms in phases],  # type: ignore[arg-type]
        **fields,
    )  # fmt: skip
    made.admit_time.FromMilliseconds(admit_ms)
    if arrive_ms:
        made.arrive_time.FromMilliseconds(arrive_ms)
    return made


def finished(made: types_pb2.Call, end_ms: int) -> pb.FinishedCall:
    message = pb.FinishedCall(call=made, outcome=types_pb2.OUTCOME_COMPLETED)
    message.end_time.FromMilliseconds(end_ms)
    return message


def wait(tool: str, begin_ms: int, end_ms: int) -> pb.ToolWaitSpan:
    message = pb.ToolWaitSpan(tool=tool)
    message.begin_time.FromMilliseconds(begin_ms)
    message.end_time.FromMilliseconds(end_ms)
    return message


def trace_of(*programs: pb.ProgramTrace, read_ms: int = 60_000) -> Trace:
    response = pb.GetTraceResponse(programs=programs)
    response.read_time.FromMilliseconds(read_ms)
    return messages.read(Trace, response)


def example(name: str = "p") -> pb.ProgramTrace:
    """Two calls one after the other with a tool between them, and one in flight."""
    program = types_pb2.Program(
        program_id=name, name="[bold]agent", calls_completed=2,
        calls=[call(7, 9_000, PHASES, program=name)],
        threads=[types_pb2.Thread(thread_id="main", calls=3)],
        times=types_pb2.TimeSplit(queue_us=200 * MS, decode_us=800 * MS),
        prefix_misses=[types_pb2.PrefixMisses(miss=types_pb2.PREFIX_MISS_EVICTED, calls=2, lost_tokens=12_345)],
    )  # fmt: skip
    calls = [
        finished(call(1, 1_000, PHASES, arrive_ms=1_010, gateway_us=20 * MS), 1_800),
        finished(
            call(2, 4_000, PHASES, prefix_miss=types_pb2.PREFIX_MISS_DIVERGED, common_tokens=512), 4_800
        ),
    ]  # fmt: skip
    return pb.ProgramTrace(program=program, finished=calls, tool_waits=[wait("search", 2_000, 3_000)])


def test_parts_of_a_call_are_where_they_were() -> None:
    (program,) = program_spans(trace_of(example()))
    first = program.calls[0]
    assert [(part.kind, (part.end_us - part.begin_us) // MS) for part in first.parts] == [
        (Kind.GATEWAY, 20), (Kind.TRAVEL, 10), (Kind.HELD, 50), (Kind.QUEUE, 100), (Kind.PREFILL, 200),
        (Kind.DECODE, 400), (Kind.REPORT, 40),
    ]  # fmt: skip
    assert first.begin_us == 980 * MS
    # Declared waits, and the time around them in which no call ran either.
    named = [(span.name, span.begin_us // MS, span.end_us // MS) for span in program.tools]
    assert named == [("", 1800, 2000), ("search", 2000, 3000), ("", 3000, 4000), ("", 4800, 9000)]
    # In flight: it does until now what it did at its last report.
    assert program.calls[-1].parts[-1].kind is Kind.DECODE
    assert bounds_us([program]) == (980 * MS, 60_000 * MS)


@given(
    admit=st.integers(1, 10_000),
    length=st.integers(0, 5_000),
    arrive=st.integers(0, 100_000),
    phases=st.lists(st.tuples(st.sampled_from(list(PhaseKind)), st.integers(0, 3_000)), max_size=8),
)
def test_parts_cover_a_call_without_gaps_whatever_the_clocks_say(
    admit: int, length: int, arrive: int, phases: list[tuple[int, int]]
) -> None:
    made = finished(call(1, admit, phases, arrive_ms=arrive, gateway_us=7), admit + length)
    (program,) = program_spans(trace_of(pb.ProgramTrace(program=types_pb2.Program(program_id="p"), finished=[made])))
    (spans,) = program.calls
    at_us = spans.begin_us
    for part in spans.parts:
        assert part.begin_us == at_us < part.end_us
        at_us = part.end_us
    assert at_us == spans.end_us == (admit + length) * MS


def test_overlapping_calls_are_on_tracks_of_their_own_and_phases_lie_within_their_call() -> None:
    overlapping = example()
    overlapping.finished.append(finished(call(3, 1_200, PHASES), 2_000))
    document = json.loads(json.dumps(chrome_trace(trace_of(overlapping, example("p/sub")))))
    slices = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in slices} == {1, 2}
    assert min(event["ts"] for event in slices) == 0
    calls = [event for event in slices if event["cat"] == "call" and event["pid"] == 1]
    assert len({event["tid"] for event in calls}) == 2
    for phase in (event for event in slices if event["cat"] == "phase"):
        assert any(
            (each["pid"], each["tid"]) == (phase["pid"], phase["tid"])
            and each["ts"] <= phase["ts"]
            and phase["ts"] + phase["dur"] <= each["ts"] + each["dur"]
            for each in slices
            if each["cat"] == "call"
        )
    arguments = next(event["args"] for event in calls if event["name"] == "call 2")
    assert (arguments["prefix"], arguments["engine"]) == ("diverged at 512", "engine-0")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_timeline_fits_the_terminal_and_names_each_call(width: int) -> None:
    trace = trace_of(example("p" * 100), example("p/sub"), read_ms=9_700)
    lines = shown(timeline_screen(trace, width, 40), width)
    assert all(len(line) <= width for line in lines)
    rows = [line for line in lines if "engine-0" in line]
    assert [row.split()[0] for row in rows] == ["1", "2", "7"] * 2
    assert rows[1].endswith("diverged at 512")
    assert any("evicted; 12.3k tokens computed again" in line for line in lines)
    assert any("[bold]agent" in line for line in lines)


def test_a_timeline_shows_the_newest_calls_and_how_many_it_leaves_out() -> None:
    many = example()
    many.calls_left_out = 3
    lines = shown(timeline_screen(trace_of(many), 80, 1), 80)
    assert "5 earlier calls are not shown" in lines
    assert sum("engine-0" in line for line in lines) == 1


def test_a_run_of_which_nothing_is_known_says_so() -> None:
    lines = shown(timeline_screen(trace_of(pb.ProgramTrace(program=types_pb2.Program(program_id="p"))), 80, 40), 80)
    assert any("no call of it is known" in line for line in lines)


@pytest.mark.parametrize("width", [80, 200])
def test_get_shows_time_calls_threads_and_sub_agents(width: int) -> None:
    lines = shown(run_screen(trace_of(example(), example("p/sub")), width), width)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    for expected in ("queue", "THREAD", "main", "SUB-AGENT", "p/sub", "diverged at 512", "TTFT"):
        assert expected in text
    # 20 ms at the gateway, 10 on its way, 150 held and queued, 200 of prefill.
    assert any("0.38s" in line for line in lines)


def test_every_reason_for_a_miss_has_words() -> None:
    for miss in PrefixMiss:
        misses = [types_pb2.PrefixMisses(miss=types_pb2.PrefixMiss.ValueType(miss), calls=1)]
        trace = trace_of(pb.ProgramTrace(program=types_pb2.Program(program_id="p", prefix_misses=misses)))
        assert any("prefix  1 " in line for line in shown(run_screen(trace, 80), 80))


def test_time_in_which_a_spent_budget_held_a_call_is_before_its_time_at_the_gateway() -> None:
    made = call(1, 10_000, PHASES, arrive_ms=10_010, gateway_us=20 * MS, held_us=5_000 * MS)
    message = pb.ProgramTrace(program=types_pb2.Program(program_id="p"), finished=[finished(made, 11_000)])
    (spans,) = program_spans(trace_of(message))[0].calls
    held, gateway = spans.parts[:2]
    assert (held.kind, held.begin_us, held.end_us) == (Kind.HELD, 4_980 * MS, 9_980 * MS)
    assert (gateway.kind, gateway.begin_us, gateway.end_us) == (Kind.GATEWAY, 9_980 * MS, 10_000 * MS)
    spent = pb.ProgramTrace(
        program=types_pb2.Program(
            program_id="p", state=types_pb2.PROGRAM_STATE_PAUSED, pause_cause=types_pb2.PAUSE_CAUSE_BUDGET
        )
    )
    assert "p: paused (budget spent)" in shown(timeline_screen(trace_of(spent), 80, 0), 80)[0]
