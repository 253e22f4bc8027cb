"""Builders of the endings that a control plane reports, for tests of the recorder. Times are in milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agentserving.client.values import Call, ClosedProgram, EndedCall, Endings, Outcome, ProgramOrigin

BEGIN = datetime(2026, 11, 24, 9, tzinfo=UTC)


def at(ms: float) -> datetime:
    """The instant `ms` milliseconds after the beginning of the recording."""
    return BEGIN + timedelta(milliseconds=ms)


def origin(
    program: str, opened: float = 0, parent: str = "", root: str = "", root_opened: float | None = None, name: str = ""
) -> ProgramOrigin:
    root_at = opened if root_opened is None else root_opened
    return ProgramOrigin(program, name, parent, root or parent or program, at(opened), at(root_at))


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
        f"{of.program_id}.1.{number}", 1, thread, "e1", 0, round(1000 * (ended_at - began)), 0, prompt, cached, output,
        0, 0, False, at(began), parents,
    )  # fmt: skip
    return EndedCall(call, of, outcome, at(ended_at + heard_late))


def closed(of: ProgramOrigin, when: float, in_flight: int = 0) -> ClosedProgram:
    return ClosedProgram(of, Outcome.COMPLETED, at(when), in_flight)


def told(*endings: EndedCall | ClosedProgram, lost: int = 0, restarted: bool = False) -> Endings:
    return Endings(1, endings, lost, restarted, BEGIN)
