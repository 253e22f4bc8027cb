"""What the clients return: frozen values with the names and units of agentserving.v1, whose .proto has the comments.

Service and waits are microseconds of model execution. Times are UTC, None when they have not come. An enum value of a
newer server that this version does not know reads as UNSPECIFIED.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Self

from agentserving.client.times import Phase, PrefixMisses, TimeSplit
from agentserving.contract.budgets import BudgetState
from agentserving.contract.ids import CallId, EngineId, ProgramId, Tenant
from agentserving.contract.phases import PrefixMiss
from agentserving.contract.policy import Policy
from agentserving.contract.service_class import ServiceClass


class WireEnum(IntEnum):
    """Numbers as on the wire; one that is not known is UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls(0)


class ProgramState(WireEnum):
    """Phase of a program's life."""

    UNSPECIFIED = 0
    ACTIVE = 1
    TOOL_WAIT = 2
    PAUSED = 3
    CLOSED = 4


class PauseCause(WireEnum):
    """Why a program is paused; UNSPECIFIED when it is not."""

    UNSPECIFIED = 0
    # `pause_program`.
    REQUEST = 1
    # The budget of its tree is spent: `resume_program` needs an addition.
    BUDGET = 2


class Outcome(WireEnum):
    """How a program or a call ended; UNSPECIFIED while it has not."""

    UNSPECIFIED = 0
    COMPLETED = 1
    CANCELLED = 2
    FAILED = 3
    EXPIRED = 4
    # Refused by the engine (HTTP 4xx): nothing was computed or charged.
    REJECTED = 5


class EngineState(WireEnum):
    """Whether an engine is given calls; only a READY one is given new programs."""

    UNSPECIFIED = 0
    READY = 1
    DRAINING = 2
    STUCK = 3
    LOST = 4
    LOADING = 5
    DOWN = 6
    # Ejected for a while, because calls failed on it and not on others.
    FAILING = 7


class Balancer(WireEnum):
    """How the engine for a call is chosen."""

    UNSPECIFIED = 0
    ROUND_ROBIN = 1
    LEAST_USED = 2
    PROGRAM_LOCALITY = 3
    PREFIX_AWARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One LLM call in flight."""

    call_id: CallId
    attempt: int
    thread_id: str
    engine_id: EngineId
    attained_service_us: int
    service_us: int
    wait_us: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    level: int
    running: bool
    admit_time: datetime | None
    parent_call_ids: tuple[CallId, ...]
    phases: tuple[Phase, ...]
    prefix_miss: PrefixMiss
    common_tokens: int
    arrive_time: datetime | None
    gateway_us: int
    trace_parent: str
    held_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """A chain of calls in a program, parallel to other chains."""

    thread_id: str
    calls: int
    service_us: int
    wait_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One row of the process table.

    attained_service_us: the account of the root's whole tree, by the policy's accounting rule. tool: what the program
    waits for, as named by `begin_tool_wait`; empty outside of tool waits. budget: of its whole tree; None = no limits.
    """

    program_id: ProgramId
    tenant: Tenant
    name: str
    parent_program_id: ProgramId
    root_program_id: ProgramId
    state: ProgramState
    outcome: Outcome
    attained_service_us: int
    total_service_us: int
    wait_us: int
    calls_completed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    calls: tuple[Call, ...]
    threads: tuple[Thread, ...]
    engine_ids: tuple[EngineId, ...]
    open_time: datetime | None
    last_arrival_time: datetime | None
    last_completion_time: datetime | None
    close_time: datetime | None
    level: int
    revision: int
    tool: str
    times: TimeSplit
    prefix_misses: tuple[PrefixMisses, ...]
    budget: BudgetState | None
    pause_cause: PauseCause
    # Of its whole tree.
    service_class: ServiceClass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramChanges:
    """What changed up to a revision. `relisted`: `changed` lists all programs; discard what was known before."""

    revision: int
    changed: tuple[Program, ...]
    removed_program_ids: tuple[ProgramId, ...]
    relisted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOrigin:
    """The program of a call or of an ending, and when it was opened."""

    program_id: ProgramId
    name: str
    parent_program_id: ProgramId
    root_program_id: ProgramId
    open_time: datetime | None
    root_open_time: datetime | None
    service_class: ServiceClass


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedCall:
    """A call that has ended, with its final counters."""

    call: Call
    program: ProgramOrigin
    outcome: Outcome
    end_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedProgram:
    """A program that takes no new calls; `calls_in_flight` have not ended yet."""

    program: ProgramOrigin
    outcome: Outcome
    close_time: datetime | None
    calls_in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """What ended up to a position, in order.

    lost: number of endings before these that were dropped, because they were not read in time. restarted: the control
    plane was restarted, and endings of that time are unknown.
    """

    position: int
    endings: tuple[EndedCall | ClosedProgram, ...]
    lost: int
    restarted: bool
    send_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedEngine:
    """An engine that may serve a call; host:port of its OpenAI front."""

    engine_id: EngineId
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What is left of one bound of the tenant; all of `limit` is available again after `reset`."""

    unit: str
    limit: int
    remaining: int
    reset: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """An admitted call: its engine, and the ticket to send there as X-Session-ID.

    fallbacks: engines on which the ticket is good as well, in the order in which to try them. budget: of the program's
    tree, once 80 % of a unit are spent.
    """

    call_id: CallId
    attempt: int
    program_id: ProgramId
    engine_id: EngineId
    engine_address: str
    ticket: str
    sidecar_address: str
    epoch: int
    fallbacks: tuple[NamedEngine, ...]
    rates: tuple[Rate, ...]
    budget: BudgetState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCapabilities:
    """What an engine can do, for one boot; adapters may be added to the models. Obstacles: why not; empty = it can."""

    engine_kind: str
    engine_version: str
    plugin_version: str
    models: tuple[str, ...]
    max_num_seqs: int
    max_model_len: int
    block_size: int
    num_blocks: int
    data_parallel_size: int
    async_scheduling: bool
    retention_obstacle: str
    working_set_obstacle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine is, and totals since its boot.

    prefill_us_per_token: measured cost of computing one prompt token; 0 = not measured.
    """

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    steps: int
    last_step_age_us: int
    preemptions_proactive: int
    preemptions_reactive: int
    promotions: int
    demotions: int
    unmanaged_calls: int
    rejected_tickets: int
    policy_time_us: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    hook_errors: int
    kept_blocks: int
    behind_kept: int
    prefill_us_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine, as the control plane sees it. `state_reason` is for people; empty when READY."""

    engine_id: EngineId
    boot_id: str
    address: str
    state: EngineState
    capabilities: EngineCapabilities
    load: EngineLoad
    policy_version: int
    calls_in_flight: int
    last_report_time: datetime | None
    state_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """What the policy `auto` has chosen for a class of programs, and why.

    application: the class; None = all programs together. chosen: the preset whose order they get. cv2:
    squared coefficient of variation of program service; 0 also while too few programs have finished.
    """

    application: str | None
    chosen: str
    reason: str
    cv2: float
    finished: int
    live: int
    since_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """A policy in force, and the engines that have acknowledged it.

    policy_error: a newer server's policy that this version cannot represent; then only the name in `policy` is true.
    choices: what `auto` has chosen, by class of programs; that for all programs together comes last.
    """

    version: int
    policy: Policy
    balancer: Balancer
    acknowledged_engine_ids: tuple[EngineId, ...] = ()
    pending_engine_ids: tuple[EngineId, ...] = ()
    policy_error: str = ""
    choices: tuple[PolicyChoice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Counts and conditions of the whole cluster."""

    epoch: int
    revision: int
    policy: PolicyVersion
    programs_live: int
    programs_running: int
    calls_running: int
    calls_waiting: int
    programs_completed: int
    calls_completed: int
    calls_unmanaged: int
    engines: tuple[Engine, ...]
    store_healthy: bool
    store_message: str
    store_pending_writes: int
    policy_choices: tuple[PolicyChoice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """A tenant's share of every engine, and bounds of its use; 0 = no bound."""

    tenant: Tenant
    weight: int
    # Neither closed nor expired.
    max_programs: int
    # Admitted and not ended.
    max_calls: int
    calls_per_minute: int
    # Prompt and answer tokens.
    tokens_per_minute: int
    tokens_per_day: int
    # Budget of a program opened without one; 0 = the cluster's default.
    program_tokens: int
    program_engine_s: int
    program_calls: int
    # Of its programs, and the best that they may ask for; UNSPECIFIED = any.
    service_class: ServiceClass
