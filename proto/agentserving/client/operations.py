"""Every unary operation of the clients, once: a request, where it goes, how its answer reads. Pure; nothing is sent.

`Client` and `AsyncClient` are made of these: each of their methods is one function here, run in one way or the other.
Mutations get an idempotency key when they are made, so that trying one again is the same mutation.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from agentserving.client import messages
from agentserving.client.values import (
    Admission,
    Balancer,
    Engine,
    Outcome,
    Overview,
    PolicyVersion,
    Program,
    ProgramState,
)
from agentserving.contract.policy import Policy
from agentserving.contract.policy_message import policy_to
from agentserving.v1 import admin_service_pb2, call_service_pb2, program_service_pb2, types_pb2

Result = TypeVar("Result")

PROGRAMS = "/agentserving.v1.ProgramService/"
CALLS = "/agentserving.v1.CallService/"
ADMIN = "/agentserving.v1.AdminService/"


@dataclass(frozen=True, slots=True)
class Operation(Generic[Result]):
    """`again`: may be tried again when nobody answered."""

    path: str
    request: Message
    response: type[Message]
    read: Callable[[Any], Result]
    again: bool = True


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the programs. `next_page_token` empty = the last ones."""

    programs: tuple[Program, ...]
    next_page_token: str
    revision: int


def _key() -> str:
    return uuid.uuid4().hex


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _program(response: Any) -> Program:
    return messages.read(Program, response.program)


def _nothing(response: Any) -> None:
    return None


# -- programs ------------------------------------------------------------------------------------------------------


def open_program(
    name: str = "", *, program_id: str = "", parent_program_id: str = "", idempotency_key: str = ""
) -> Operation[Program]:
    """Opens a program; durable when it answers. An empty id is made up by the control plane."""
    pb = program_service_pb2
    request = pb.OpenProgramRequest(
        program_id=program_id, name=name, parent_program_id=parent_program_id, idempotency_key=idempotency_key or _key()
    )
    return Operation(PROGRAMS + "OpenProgram", request, pb.OpenProgramResponse, _program)


def close_program(program_id: str, *, outcome: Outcome = Outcome.COMPLETED) -> Operation[Program]:
    """Ends a program, COMPLETED or FAILED; calls in flight finish and are charged."""
    pb = program_service_pb2
    request = pb.CloseProgramRequest(
        program_id=program_id, outcome=types_pb2.Outcome.ValueType(outcome), idempotency_key=_key()
    )
    return Operation(PROGRAMS + "CloseProgram", request, pb.CloseProgramResponse, _program)


def get_program(program_id: str) -> Operation[Program]:
    """One program with its calls in flight and its threads."""
    pb = program_service_pb2
    return Operation(
        PROGRAMS + "GetProgram", pb.GetProgramRequest(program_id=program_id), pb.GetProgramResponse, _program
    )


def list_page(states: Iterable[ProgramState] = (), *, page_size: int = 0, page_token: str = "") -> Operation[Page]:
    """Some programs, by id. No states = all but CLOSED."""
    pb = program_service_pb2
    request = pb.ListProgramsRequest(
        page_size=page_size, page_token=page_token, states=[types_pb2.ProgramState.ValueType(s) for s in states]
    )

    def page(response: pb.ListProgramsResponse) -> Page:
        programs = tuple(messages.read(Program, program) for program in response.programs)
        return Page(programs, response.next_page_token, response.revision)

    return Operation(PROGRAMS + "ListPrograms", request, pb.ListProgramsResponse, page)


def cancel_program(program_id: str) -> Operation[int]:
    """Aborts all calls of a program and of its children, and closes them; gives how many calls were told to stop."""
    pb = program_service_pb2
    request = pb.CancelProgramRequest(program_id=program_id, idempotency_key=_key())
    return Operation(PROGRAMS + "CancelProgram", request, pb.CancelProgramResponse, lambda r: int(r.calls_cancelled))


def pause_program(program_id: str) -> Operation[Program]:
    """Holds a program on every engine: its calls queue, running ones are preempted."""
    pb = program_service_pb2
    request = pb.PauseProgramRequest(program_id=program_id, idempotency_key=_key())
    return Operation(PROGRAMS + "PauseProgram", request, pb.PauseProgramResponse, _program)


def resume_program(program_id: str) -> Operation[Program]:
    """Lets a paused program go on."""
    pb = program_service_pb2
    request = pb.ResumeProgramRequest(program_id=program_id, idempotency_key=_key())
    return Operation(PROGRAMS + "ResumeProgram", request, pb.ResumeProgramResponse, _program)


def begin_tool_wait(program_id: str, *, tool: str, thread_id: str = "", expected_s: float = 0.0) -> Operation[None]:
    """Tells that a program waits for a tool or a human; `expected_s` 0 = unknown."""
    pb = program_service_pb2
    request = pb.BeginToolWaitRequest(
        program_id=program_id, thread_id=thread_id, tool=tool, expected_us=_us(expected_s)
    )
    return Operation(PROGRAMS + "BeginToolWait", request, pb.BeginToolWaitResponse, _nothing)


def end_tool_wait(program_id: str, *, thread_id: str = "") -> Operation[None]:
    """Tells that the wait is over."""
    pb = program_service_pb2
    request = pb.EndToolWaitRequest(program_id=program_id, thread_id=thread_id)
    return Operation(PROGRAMS + "EndToolWait", request, pb.EndToolWaitResponse, _nothing)


# -- calls ---------------------------------------------------------------------------------------------------------


def admit(
    program_id: str = "",
    *,
    thread_id: str = "",
    parent_call_ids: Iterable[str] = (),
    implicit: bool = False,
    name: str = "",
    parent_program_id: str = "",
    prompt_tokens: int = 0,
    model: str = "",
    retry_of_call_id: str = "",
    exclude_engine_ids: Iterable[str] = (),
) -> Operation[Admission]:
    """Takes a call in: which engine runs it, and its ticket. No id = a program of this one call.

    `implicit` opens an unknown program. Whoever admits a call runs it, or tells `end_call`. Never tried again by
    itself: two admissions are two calls.
    """
    request = call_service_pb2.AdmitCallRequest(
        program_id=program_id,
        thread_id=thread_id,
        parent_call_ids=parent_call_ids,
        implicit=implicit,
        name=name,
        parent_program_id=parent_program_id,
        prompt_tokens=prompt_tokens,
        model=model,
        retry_of_call_id=retry_of_call_id,
        exclude_engine_ids=exclude_engine_ids,
        idempotency_key=_key(),
    )
    return Operation(
        CALLS + "AdmitCall",
        request,
        call_service_pb2.AdmitCallResponse,
        lambda response: messages.read(Admission, response),
        again=False,
    )


def end_call(call_id: str, *, outcome: Outcome = Outcome.CANCELLED, never_started: bool = False) -> Operation[None]:
    """Ends a call that no engine will report."""
    request = call_service_pb2.EndCallRequest(
        call_id=call_id, outcome=types_pb2.Outcome.ValueType(outcome), never_started=never_started
    )
    return Operation(CALLS + "EndCall", request, call_service_pb2.EndCallResponse, _nothing)


# -- the cluster ---------------------------------------------------------------------------------------------------


def get_policy() -> Operation[PolicyVersion]:
    """The policy in force, and which engines follow it already."""
    pb = admin_service_pb2

    def version(response: pb.GetPolicyResponse) -> PolicyVersion:
        return messages.policy_version(
            response.policy, tuple(response.acknowledged_engine_ids), tuple(response.pending_engine_ids)
        )

    return Operation(ADMIN + "GetPolicy", pb.GetPolicyRequest(), pb.GetPolicyResponse, version)


def set_policy(
    policy: Policy | str | None = None, *, balancer: Balancer = Balancer.UNSPECIFIED, expected_version: int = 0
) -> Operation[PolicyVersion]:
    """Puts a policy (a value, or a preset's name) or a balancer in force; durable when it answers.

    `expected_version`: ConflictError when another version is in force; 0 = whichever. With one it is not tried again:
    a change that was made, but whose answer got lost, would look like a conflict.
    """
    pb = admin_service_pb2
    message = types_pb2.Policy(name=policy) if isinstance(policy, str) else None
    if isinstance(policy, Policy):
        message = policy_to(policy)
    request = pb.ApplyPolicyRequest(
        policy=message,
        balancer=types_pb2.Balancer.ValueType(balancer),
        idempotency_key=_key(),
        expected_version=expected_version,
    )
    return Operation(
        ADMIN + "ApplyPolicy",
        request,
        pb.ApplyPolicyResponse,
        lambda response: messages.policy_version(response.policy),
        again=not expected_version,
    )


def list_engines() -> Operation[tuple[Engine, ...]]:
    """All engines that have attached to this control plane."""
    pb = admin_service_pb2
    return Operation(
        ADMIN + "ListEngines",
        pb.ListEnginesRequest(),
        pb.ListEnginesResponse,
        lambda response: tuple(messages.read(Engine, engine) for engine in response.engines),
    )


def drain_engine(engine_id: str) -> Operation[Engine]:
    """Takes an engine out for new calls; its calls finish."""
    pb = admin_service_pb2
    request = pb.DrainEngineRequest(engine_id=engine_id, idempotency_key=_key())
    return Operation(ADMIN + "DrainEngine", request, pb.DrainEngineResponse, lambda r: messages.read(Engine, r.engine))


def get_overview() -> Operation[Overview]:
    """Counts and conditions of the whole cluster."""
    pb = admin_service_pb2
    return Operation(
        ADMIN + "GetOverview",
        pb.GetOverviewRequest(),
        pb.GetOverviewResponse,
        lambda response: messages.read(Overview, response),
    )
