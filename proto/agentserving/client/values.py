"""What the clients answer with: frozen values, named and measured as in agentserving.v1 (the proto has the comments).

Service and waits are microseconds of model execution; instants are UTC, None when they have not come. An enum value
that this version does not know reads as UNSPECIFIED.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Self

from agentserving.contract.policy import Policy


class _WireEnum(IntEnum):
    """Numbers as on the wire; one of a newer server is UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls(0)


class ProgramState(_WireEnum):
    """Where a program is in its life."""

    UNSPECIFIED = 0
    ACTIVE = 1
    TOOL_WAIT = 2
    PAUSED = 3
    CLOSED = 4


class Outcome(_WireEnum):
    """How a program or a call ended; UNSPECIFIED while it goes on."""

    UNSPECIFIED = 0
    COMPLETED = 1
    CANCELLED = 2
    FAILED = 3
    EXPIRED = 4


class EngineState(_WireEnum):
    """Whether an engine takes calls."""

    UNSPECIFIED = 0
    READY = 1
    DRAINING = 2
    STUCK = 3
    LOST = 4
    LOADING = 5
    DOWN = 6
    FAILING = 7


class Balancer(_WireEnum):
    """How the engine for a call is chosen."""

    UNSPECIFIED = 0
    ROUND_ROBIN = 1
    LEAST_USED = 2
    PROGRAM_LOCALITY = 3
    PREFIX_AWARE = 4


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call in flight."""

    call_id: str
    attempt: int
    thread_id: str
    engine_id: str
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
    parent_call_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Thread:
    """A chain of calls in a program, parallel to other chains."""

    thread_id: str
    calls: int
    service_us: int
    wait_us: int


@dataclass(frozen=True, slots=True)
class Program:
    """One row of the process table. `attained_service_us` is the account, by the policy's rule, of the root's tree."""

    program_id: str
    tenant: str
    name: str
    parent_program_id: str
    root_program_id: str
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
    engine_ids: tuple[str, ...]
    open_time: datetime | None
    last_arrival_time: datetime | None
    last_completion_time: datetime | None
    close_time: datetime | None
    level: int
    revision: int


@dataclass(frozen=True, slots=True)
class ProgramChanges:
    """What changed up to a revision. `relisted`: these are all programs there are, what was known before is void."""

    revision: int
    changed: tuple[Program, ...]
    removed_program_ids: tuple[str, ...]
    relisted: bool = False


@dataclass(frozen=True, slots=True)
class ProgramOrigin:
    """Whose a call is, and when that program began."""

    program_id: str
    name: str
    parent_program_id: str
    root_program_id: str
    open_time: datetime | None
    root_open_time: datetime | None


@dataclass(frozen=True, slots=True)
class EndedCall:
    """A call that has ended, with its counters in all."""

    call: Call
    program: ProgramOrigin
    outcome: Outcome
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class ClosedProgram:
    """A program that takes no new calls; some may still have to end."""

    program: ProgramOrigin
    outcome: Outcome
    close_time: datetime | None
    calls_in_flight: int


@dataclass(frozen=True, slots=True)
class Endings:
    """What ended up to a position, in order.

    `lost`: so many before these were missed, because they were not read in time. `restarted`: the control plane has,
    and nobody knows what ended meanwhile.
    """

    position: int
    endings: tuple[EndedCall | ClosedProgram, ...]
    lost: int
    restarted: bool
    send_time: datetime | None


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted call: where it runs, and the ticket to send there as X-Session-ID."""

    call_id: str
    attempt: int
    program_id: str
    engine_id: str
    engine_address: str
    ticket: str
    sidecar_address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What an engine can do; fixed for one boot."""

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


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is, and what it has done since its boot."""

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


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, as the control plane sees it."""

    engine_id: str
    boot_id: str
    address: str
    state: EngineState
    capabilities: EngineCapabilities
    load: EngineLoad
    policy_version: int
    calls_in_flight: int
    last_report_time: datetime | None
    state_reason: str


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A policy in force, with its place in the sequence of changes, and who follows it already."""

    version: int
    policy: Policy
    balancer: Balancer
    acknowledged_engine_ids: tuple[str, ...] = ()
    pending_engine_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
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
