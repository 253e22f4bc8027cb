"""Builders of the endings that a control plane reports, for tests of the recorder. Times are in milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agentserving.client.values import Call, ClosedProgram, EndedCall, Endings, Outcome, ProgramOrigin
from agentserving.contract.ids import CallId, EngineId, ProgramId
from agentserving.contract.phases import PrefixMiss
from agentserving.contract.service_class import ServiceClass

BEGIN = datetime(2026, 11, 24, 9, tzinfo=UTC)


def at(ms: float) -> datetime:
    """The instant `ms` milliseconds after the beginning of the recording."""
    return BEGIN + timedelta(milliseconds=ms)


def origin(
    program: str,
    opened: float = 0,
    parent: str = "",
    root: str = "",
    root_opened: float | None = None,
    name: str = "",
    service_class: ServiceClass = ServiceClass.STANDARD,
) -> ProgramOrigin:
    root_at = opened if root_opened is None else root_opened
    return ProgramOrigin(
        program_id=ProgramId(program), name=name, parent_program_id=ProgramId(parent),
        root_program_id=ProgramId(root or parent or program), open_time=at(opened), root_open_time=at(root_at),
        service_class=service_class,
    )  # fmt: skip


def ended(
    of: ProgramOrigin,
    number: int,
    began: float,
    ended_at: float,
    *,
    prompt: int = 100,
    output: int = 10,
    cached: int = 0,
    thread: str = "",
    parents: tuple[str, ...] = (),
    outcome: Outcome = Outcome.COMPLETED,
    heard_late: float = 0,
) -> EndedCall:
    """A call without wait, whose end reached the control plane `heard_late` milliseconds late."""
    call = Call(
        call_id=CallId(f"{of.program_id}.1.{number}"), attempt=1, thread_id=thread, engine_id=EngineId("e1"),
        attained_service_us=0, service_us=round(1000 * (ended_at - began)), wait_us=0, prompt_tokens=prompt,
        cached_tokens=cached, output_tokens=output, preemptions=0, level=0, running=False, admit_time=at(began),
        parent_call_ids=tuple(CallId(each) for each in parents), phases=(), prefix_miss=PrefixMiss.UNSPECIFIED,
        common_tokens=0, arrive_time=None, gateway_us=0, held_us=0, trace_parent="",
    )  # fmt: skip
    return EndedCall(call=call, program=of, outcome=outcome, end_time=at(ended_at + heard_late))


def closed(of: ProgramOrigin, when: float, in_flight: int = 0) -> ClosedProgram:
    return ClosedProgram(program=of, outcome=Outcome.COMPLETED, close_time=at(when), calls_in_flight=in_flight)


def watched_endings(*endings: EndedCall | ClosedProgram, lost: int = 0, restarted: bool = False) -> Endings:
    return Endings(position=1, endings=endings, lost=lost, restarted=restarted, send_time=BEGIN)
