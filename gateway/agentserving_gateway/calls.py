"""A call between its request and its end, as values: what the picker asks of the leader, and what it answers.

Who ends a call: the engine's report, or this picker, which names every call whose exchange is over. Ends that did not
go as planned are sent one by one; the others in batches, since nearly all of them repeat what the engine has reported.
They end the calls that an engine has answered without its scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agentserving.contract.budgets import UNLIMITED, Budget, BudgetState
from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.contract.rates import Rate
from agentserving.contract.service_class import ServiceClass


class Ending(Enum):
    """How the exchange of a call has ended; a metric label."""

    # An engine's answer was passed on whole, after a retry.
    COMPLETED = "completed"
    # The client left, or the admission came too late for it.
    CANCELLED = "cancelled"
    # The connection to the engine failed, or the engine answered 5xx.
    FAILED = "failed"
    # The engine's HTTP server refused the request (4xx) before its scheduler saw it.
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One admission. `program_id` empty = a program of this one call; `prompt_tokens` is an estimate."""

    tenant: Tenant
    program_id: ProgramId = ProgramId("")
    parent_program_id: ProgramId = ProgramId("")
    thread_id: str = ""
    parent_call_ids: tuple[str, ...] = ()
    program_name: str = ""
    prompt_tokens: int = 0
    model: str = ""
    # The program ends with this call.
    final: bool = False
    # An attempt that failed before its first byte, and the engines that must not be chosen.
    retry_of_call_id: CallId = CallId("")
    exclude: tuple[EngineId, ...] = ()
    # When the picker was asked, monotonic; 0 = not known. And the request's W3C traceparent.
    received_s: float = 0.0
    trace_parent: str = ""
    # The call is held until there is an engine; 0 = it is not.
    hold_id: int = 0
    # Of the program's tree, if that has none yet. And for how long its spent budget has held this call.
    budget: Budget = UNLIMITED
    held_s: float = 0.0
    # What the client asks for, and the best class that its key may use; UNSPECIFIED = nothing, and any.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED
    service_class_limit: ServiceClass = ServiceClass.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfCall:
    """One EndCall. `never_started`: no engine can have seen it. `engine_id`, `tries`: who answered, after how many."""

    call_id: CallId
    tenant: Tenant
    ending: Ending
    never_started: bool = False
    engine_id: EngineId = EngineId("")
    tries: int = 0
    # Nothing is to be aborted: an engine may have it.
    if_unseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """Where a call goes. `call_id` and `ticket` are empty for an unmanaged call. `rates`: of the tenant's bounds.

    `budget`: of the program's tree, when little is left of it.
    """

    engine_id: EngineId
    engine_address: str
    # Addresses of the engines that may be tried next; the ticket is good on them, too.
    fallbacks: tuple[str, ...] = ()
    tenant: Tenant
    call_id: CallId = CallId("")
    program_id: ProgramId = ProgramId("")
    ticket: str = ""
    rates: tuple[Rate, ...] = ()
    budget: BudgetState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The leader does not admit a call. `code` is a google.rpc.Code, `reason` a closed word.

    `rates` as of Admitted; `budget`: of the program's tree, when it is spent.
    """

    code: int
    reason: str
    message: str
    retry_after_s: float = 0.0
    rates: tuple[Rate, ...] = ()
    budget: BudgetState | None = None
