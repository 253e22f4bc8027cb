"""What a program's tree has done, as the clients return it (GetTrace in program_service.proto)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agentserving.client import messages
from agentserving.client.operations import PROGRAMS, Operation
from agentserving.client.values import Call, Outcome, Program
from agentserving.v1 import program_service_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedCall:
    """A call that has ended."""

    call: Call
    outcome: Outcome
    end_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWaitSpan:
    """A declared tool wait; `end_time` None while it goes on."""

    tool: str
    begin_time: datetime | None
    end_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTrace:
    """One program of the tree: finished calls, oldest first, and how many more there were."""

    program: Program
    finished: tuple[FinishedCall, ...]
    calls_left_out: int
    tool_waits: tuple[ToolWaitSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A program and its descendants, the program first."""

    programs: tuple[ProgramTrace, ...]
    programs_left_out: int
    read_time: datetime | None


def get_trace(program_id: str) -> Operation[Trace]:
    """What a program's tree has done: its newest finished calls, those in flight, and tool waits."""
    pb = program_service_pb2
    return Operation(
        PROGRAMS + "GetTrace",
        pb.GetTraceRequest(program_id=program_id),
        pb.GetTraceResponse,
        lambda response: messages.read(Trace, response),
    )
