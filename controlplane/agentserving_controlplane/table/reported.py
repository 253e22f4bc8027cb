"""An engine's word on one call, as the table takes it: absolute, monotone, never larger than a sum can bear. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_controlplane.table.rows import CallRow

# 35 years of service, or as many tokens: whoever says more is mistaken, and is taken to have said this.
MAX_COUNTER = 1 << 50


@dataclass(frozen=True, slots=True)
class Reported:
    """One call's counters as an engine tells them; `outcome` 0 while it goes on."""

    call_id: str
    attempt: int
    program_id: str
    tenant: str
    thread_id: str
    root: str
    attained_service_us: int
    engine_id: str
    boot_id: str = ""
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    level: int = 0
    running: bool = False
    outcome: int = 0

    @property
    def negative(self) -> bool:
        """True when a counter makes no sense at all."""
        return (
            min(
                self.service_us,
                self.wait_us,
                self.prompt_tokens,
                self.cached_tokens,
                self.output_tokens,
                self.attained_service_us,
            )
            < 0
        )


def raise_counters(call: CallRow, told: Reported) -> None:
    """Counters only grow; everything else is as it was told last."""
    call.attempt = max(call.attempt, told.attempt)
    call.boot_id = told.boot_id or call.boot_id
    call.service_us = _larger(call.service_us, told.service_us)
    call.wait_us = _larger(call.wait_us, told.wait_us)
    call.prompt_tokens = _larger(call.prompt_tokens, told.prompt_tokens)
    call.cached_tokens = _larger(call.cached_tokens, told.cached_tokens)
    call.output_tokens = _larger(call.output_tokens, told.output_tokens)
    call.preemptions = _larger(call.preemptions, told.preemptions)
    call.level = told.level


def _larger(known: int, told: int) -> int:
    return max(known, min(told, MAX_COUNTER))
