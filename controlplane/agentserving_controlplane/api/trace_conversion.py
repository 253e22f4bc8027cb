"""A program's trace as a message. Pure."""

from __future__ import annotations

from agentserving.v1 import program_service_pb2 as pb
from agentserving.v1 import types_pb2

from agentserving_controlplane.api.conversion import call_to_message, program_to_message
from agentserving_controlplane.program_operations import ProgramTrace, TreeTrace
from agentserving_controlplane.table.traces import Finished, ToolWait


def trace_to_message(tree: TreeTrace, now_us: int) -> pb.GetTraceResponse:
    """What a program's tree has done; `now_us`: Unix microseconds."""
    response = pb.GetTraceResponse(programs=map(_program, tree.programs), programs_left_out=tree.left_out)
    response.read_time.FromMicroseconds(now_us)
    return response


def _program(trace: ProgramTrace) -> pb.ProgramTrace:
    return pb.ProgramTrace(
        program=program_to_message(trace.view),
        finished=map(_finished, trace.finished),
        calls_left_out=trace.left_out,
        tool_waits=map(_tool_wait, trace.tool_waits),
    )


def _finished(finished: Finished) -> pb.FinishedCall:
    message = pb.FinishedCall(
        call=call_to_message(finished.call), outcome=types_pb2.Outcome.ValueType(finished.outcome)
    )
    message.end_time.FromMicroseconds(finished.end_us)
    return message


def _tool_wait(wait: ToolWait) -> pb.ToolWaitSpan:
    message = pb.ToolWaitSpan(tool=wait.tool)
    message.begin_time.FromMicroseconds(wait.begin_us)
    if wait.end_us:
        message.end_time.FromMicroseconds(wait.end_us)
    return message
