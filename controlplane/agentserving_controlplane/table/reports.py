"""An engine's report on one call, and how it changes the call's row: absolute, monotone, bounded. Pure."""

from __future__ import annotations

import msgspec
from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.phases import Phases

from agentserving_controlplane.table.rows import MAX_PHASES, MAX_SUM, NO_PROGRAM, CallRow
from agentserving_controlplane.table.states import Outcome

# 35 years of service, or as many tokens. A larger number is an error of the reporter and is cut to this.
MAX_COUNTER = 1 << 50


class CallReport(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Counters of one call since its arrival at the engine; `outcome` is NONE while it goes on.

    Ids, thread and account repeat the ticket, so that a table which lost the admission can adopt the call.
    """

    call_id: CallId
    program_id: ProgramId
    engine_id: EngineId
    tenant: Tenant
    root: ProgramId = NO_PROGRAM
    attempt: int = 1
    thread_id: str = ""
    attained_service_us: int = 0
    boot_id: str = ""
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    level: int = 0
    running: bool = False
    outcome: Outcome = Outcome.NONE
    # All engines that the ticket names, in order; empty when it names only this one.
    engine_ids: tuple[EngineId, ...] = ()
    # Time in the engine so far, in order (agentserving.contract.phases).
    phases: Phases = ()
    prefix_miss: int = 0
    common_tokens: int = 0
    # By the engine's wall clock.
    arrive_unix_us: int = 0

    @property
    def key(self) -> ProgramKey:
        return ProgramKey(self.tenant, self.program_id)

    @property
    def is_negative(self) -> bool:
        """True when a counter is below zero: nothing in the report can be trusted."""
        times_us = min(self.service_us, self.wait_us, self.attained_service_us)
        tokens = min(self.prompt_tokens, self.cached_tokens, self.output_tokens, self.common_tokens)
        return times_us < 0 or tokens < 0 or any(us < 0 for _, us in self.phases)


def raise_counters(call: CallRow, report: CallReport) -> None:
    """Applies a report to a call's row. Counters only grow; the level is the newest one."""
    call.attempt = max(call.attempt, report.attempt)
    call.boot_id = report.boot_id or call.boot_id
    call.service_us = max(call.service_us, min(report.service_us, MAX_COUNTER))
    call.wait_us = max(call.wait_us, min(report.wait_us, MAX_COUNTER))
    call.prompt_tokens = max(call.prompt_tokens, min(report.prompt_tokens, MAX_COUNTER))
    call.cached_tokens = max(call.cached_tokens, min(report.cached_tokens, MAX_COUNTER))
    call.output_tokens = max(call.output_tokens, min(report.output_tokens, MAX_COUNTER))
    call.preemptions = max(call.preemptions, min(report.preemptions, MAX_COUNTER))
    call.level = report.level
    if sum(us for _, us in report.phases) >= sum(us for _, us in call.phases):
        call.phases = [(kind, min(us, MAX_COUNTER)) for kind, us in report.phases[:MAX_PHASES]]
    call.prefix_miss = report.prefix_miss or call.prefix_miss
    call.common_tokens = max(call.common_tokens, min(report.common_tokens, MAX_COUNTER))
    call.arrive_us = call.arrive_us or min(max(0, report.arrive_unix_us), MAX_SUM)
