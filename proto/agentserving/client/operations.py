"""Every unary operation of the clients, once: the request, its method, and how the response is read. Pure.

`Client` and `AsyncClient` share these functions: each of their methods runs one of them, blocking or awaited.
Operations that create something (a program, a call, a policy version) carry an idempotency key, so that a retry is the
same mutation. The others set a state: repeating them changes nothing, and they need no key.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from agentserving.client import messages
from agentserving.client.demand import Demand
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
from agentserving.contract.budgets import Budget
from agentserving.contract.policy import Policy
from agentserving.contract.policy_message import policy_to
from agentserving.contract.service_class import ServiceClass
from agentserving.v1 import admin_service_pb2, call_service_pb2, program_service_pb2, types_pb2

Result = TypeVar("Result")

PROGRAMS = "/agentserving.v1.ProgramService/"
CALLS = "/agentserving.v1.CallService/"
ADMIN = "/agentserving.v1.AdminService/"


@dataclass(frozen=True, slots=True)
class Operation(Generic[Result]):
    """A unary RPC. `may_retry`: whether to send it again when no server answered."""

    path: str
    request: Message
    response: type[Message]
    read: Callable[[Any], Result]
    may_retry: bool = field(default=True, kw_only=True)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list of programs. An empty `next_page_token` marks the last one."""

    programs: tuple[Program, ...]
    next_page_token: str
    revision: int


def _key() -> str:
    return uuid.uuid4().hex


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _program(response: Any) -> Program:
    return messages.read(Program, response.program)


def _engine(response: Any) -> Engine:
    return messages.read(Engine, response.engine)


def _nothing(response: Any) -> None:
    return None


# -- programs ------------------------------------------------------------------------------------------------------


def open_program(
    name: str = "",
    *,
    program_id: str = "",
    parent_program_id: str = "",
    idempotency_key: str = "",
    budget: Budget | str | None = None,
    service_class: ServiceClass = ServiceClass.UNSPECIFIED,
) -> Operation[Program]:
    """Opens a program; durable when it returns. With an empty id the control plane chooses one.

    Reopens a program that was closed or cancelled. budget: what it and its sub-agents may use before they are paused,
    a value or text (tokens=200k,engine-seconds=300,calls=50); the cluster may have a default for what it leaves out.
    service_class: UNSPECIFIED = the key's, or else the cluster's; a sub-agent has its root's. PermissionDeniedError for
    a better one than the key may use.
    """
    pb = program_service_pb2
    request = pb.OpenProgramRequest(
        program_id=program_id,
        name=name,
        parent_program_id=parent_program_id,
        idempotency_key=idempotency_key or _key(),
        budget=messages.budget_message(budget),
        service_class=types_pb2.ServiceClass.ValueType(service_class),
    )
    return Operation(PROGRAMS + "OpenProgram", request, pb.OpenProgramResponse, _program)


def close_program(program_id: str, *, outcome: Outcome = Outcome.COMPLETED) -> Operation[Program]:
    """Ends a program, COMPLETED or FAILED; calls in flight finish and are charged."""
    pb = program_service_pb2
    request = pb.CloseProgramRequest(program_id=program_id, outcome=types_pb2.Outcome.ValueType(outcome))
    return Operation(PROGRAMS + "CloseProgram", request, pb.CloseProgramResponse, _program)


def get_program(program_id: str) -> Operation[Program]:
    """One program with its calls in flight and its threads."""
    pb = program_service_pb2
    return Operation(
        PROGRAMS + "GetProgram", pb.GetProgramRequest(program_id=program_id), pb.GetProgramResponse, _program
    )


def list_page(states: Iterable[ProgramState] = (), *, page_size: int = 0, page_token: str = "") -> Operation[Page]:
    """A page of programs in order of their ids. No states = all but CLOSED."""
    pb = program_service_pb2
    request = pb.ListProgramsRequest(
        page_size=page_size, page_token=page_token, states=[types_pb2.ProgramState.ValueType(s) for s in states]
    )

    def page(response: pb.ListProgramsResponse) -> Page:
        programs = tuple(messages.read(Program, program) for program in response.programs)
        return Page(programs, response.next_page_token, response.revision)

    return Operation(PROGRAMS + "ListPrograms", request, pb.ListProgramsResponse, page)


def cancel_program(program_id: str) -> Operation[int]:
    """Aborts all calls of a program and of its children, and closes them; returns the number of aborted calls.

    Later calls are refused with PermissionDeniedError (reason PROGRAM_CANCELLED) until `open_program` reopens it.
    """
    pb = program_service_pb2
    request = pb.CancelProgramRequest(program_id=program_id)
    return Operation(PROGRAMS + "CancelProgram", request, pb.CancelProgramResponse, lambda r: int(r.calls_cancelled))


def pause_program(program_id: str) -> Operation[Program]:
    """Pauses a program on every engine: running calls are preempted, and all of its calls stay in the queue."""
    pb = program_service_pb2
    request = pb.PauseProgramRequest(program_id=program_id)
    return Operation(PROGRAMS + "PauseProgram", request, pb.PauseProgramResponse, _program)


def resume_program(program_id: str, *, add: Budget | str | None = None, addition_id: str = "") -> Operation[Program]:
    """Resumes a program's tree. While its budget is spent: ConflictError (reason BUDGET_SPENT) unless `add` is enough.

    add: added to the limits of its budget, once, however often the request is sent. addition_id: names the addition
    where several callers may make the same one; random by default.
    """
    pb = program_service_pb2
    request = pb.ResumeProgramRequest(
        program_id=program_id,
        add=messages.budget_message(add),
        addition_id=(addition_id or _key()) if add else "",
    )
    return Operation(PROGRAMS + "ResumeProgram", request, pb.ResumeProgramResponse, _program)


def begin_tool_wait(program_id: str, *, tool: str, thread_id: str = "", expected_s: float = 0.0) -> Operation[None]:
    """A program, or one of its threads, begins to wait for a tool or a human. `expected_s`: how long; 0 = unknown.

    Engines decide by it whether the program's KV blocks are worth keeping.
    """
    pb = program_service_pb2
    request = pb.BeginToolWaitRequest(
        program_id=program_id, thread_id=thread_id, tool=tool, expected_us=_us(expected_s)
    )
    return Operation(PROGRAMS + "BeginToolWait", request, pb.BeginToolWaitResponse, _nothing)


def end_tool_wait(program_id: str, *, thread_id: str = "") -> Operation[None]:
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
    budget: Budget | str | None = None,
) -> Operation[Admission]:
    """Admits a call: chooses its engine and signs its ticket. No program id = a program of this one call.

    implicit: open a program that is unknown. prompt_tokens: an estimate, for the load balancer. retry_of_call_id: the
    attempt that failed; give its program_id, too. The caller runs the call or ends it with `end_call`. Not retried
    automatically, because two admissions are two calls.
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
        budget=messages.budget_message(budget),
    )
    return Operation(
        CALLS + "AdmitCall",
        request,
        call_service_pb2.AdmitCallResponse,
        lambda response: messages.read(Admission, response),
        may_retry=False,
    )


def end_call(call_id: str, *, outcome: Outcome = Outcome.CANCELLED, never_started: bool = False) -> Operation[None]:
    """Ends a call that no engine will report. REJECTED: the engine refused it (HTTP 4xx)."""
    request = call_service_pb2.EndCallRequest(
        call_id=call_id, outcome=types_pb2.Outcome.ValueType(outcome), never_started=never_started
    )
    return Operation(CALLS + "EndCall", request, call_service_pb2.EndCallResponse, _nothing)


# -- the cluster ---------------------------------------------------------------------------------------------------


def get_policy() -> Operation[PolicyVersion]:
    """The policy in force, and the engines that have acknowledged it."""
    pb = admin_service_pb2

    def version(response: pb.GetPolicyResponse) -> PolicyVersion:
        return messages.policy_version(
            response.policy, response.acknowledged_engine_ids, response.pending_engine_ids, response.choices
        )

    return Operation(ADMIN + "GetPolicy", pb.GetPolicyRequest(), pb.GetPolicyResponse, version)


def set_policy(
    policy: Policy | str | None = None, *, balancer: Balancer = Balancer.UNSPECIFIED, expected_version: int = 0
) -> Operation[PolicyVersion]:
    """Puts a policy (a value, or the name of a preset) or a load balancer in force; durable when it returns.

    expected_version: ConflictError unless this version is in force; 0 = any. Such a change is not retried, because one
    that was applied, but whose response was lost, would look like a conflict.
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
        may_retry=not expected_version,
    )


def list_engines() -> Operation[tuple[Engine, ...]]:
    """All engines that the control plane knows."""
    pb = admin_service_pb2
    return Operation(
        ADMIN + "ListEngines",
        pb.ListEnginesRequest(),
        pb.ListEnginesResponse,
        lambda response: tuple(messages.read(Engine, engine) for engine in response.engines),
    )


def drain_engine(engine_id: str) -> Operation[Engine]:
    """Gives an engine no new programs; its calls finish. Durable until `undrain_engine`."""
    pb = admin_service_pb2
    request = pb.DrainEngineRequest(engine_id=engine_id)
    return Operation(ADMIN + "DrainEngine", request, pb.DrainEngineResponse, _engine)


def undrain_engine(engine_id: str) -> Operation[Engine]:
    """Ends the drain of an engine."""
    pb = admin_service_pb2
    request = pb.UndrainEngineRequest(engine_id=engine_id)
    return Operation(ADMIN + "UndrainEngine", request, pb.UndrainEngineResponse, _engine)


def get_overview() -> Operation[Overview]:
    """Counts and conditions of the whole cluster."""
    pb = admin_service_pb2
    return Operation(
        ADMIN + "GetOverview",
        pb.GetOverviewRequest(),
        pb.GetOverviewResponse,
        lambda response: messages.read(Overview, response),
    )


def get_demand() -> Operation[Demand]:
    """What live programs need of engines."""
    pb = admin_service_pb2
    return Operation(
        ADMIN + "GetDemand",
        pb.GetDemandRequest(),
        pb.GetDemandResponse,
        lambda response: messages.read(Demand, response),
    )
