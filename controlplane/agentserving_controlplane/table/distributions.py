"""How long calls and programs took, as histograms by tenant, class and class of service, and what they used. Pure.

Phases of a call are its engine's, so a call that ended without an engine's report is in none of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentserving.contract.ids import Tenant
from agentserving.contract.phases import PhaseKind
from agentserving.contract.service_class import ServiceClass

from agentserving_controlplane.table.rows import CallRow, ProgramRow

# Tenants, classes (a program's name) and classes of service with series of their own; later ones are counted together
# by their class of service.
MAX_SERIES = 64
_Key = tuple[Tenant, str, ServiceClass]

_WAITING = frozenset((PhaseKind.HELD, PhaseKind.QUEUE, PhaseKind.PREEMPTED))
_CALL_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_PROGRAM_S = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400)
_SLOWDOWN = (1.01, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50)


@dataclass(slots=True)
class Histogram:
    """Counts of values up to each of `bounds`, which ascend, and of those above the last one."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Counts a value. A bound includes what is equal to it, as in Prometheus."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, values up to it), ending with `+Inf`."""
        names, running, pairs = [*map(str, map(float, self.bounds)), "+Inf"], 0, []
        for name, count in zip(names, self.counts, strict=True):
            running += count
            pairs.append((name, running))
        return pairs


@dataclass(slots=True)
class Series:
    """Of one key; seconds, and `slowdown` the time in calls by the time computed for them."""

    wait: Histogram = field(default_factory=lambda: Histogram(_CALL_S))
    first_token: Histogram = field(default_factory=lambda: Histogram(_CALL_S))
    output_token: Histogram = field(default_factory=lambda: Histogram(_TOKEN_S))
    program: Histogram = field(default_factory=lambda: Histogram(_PROGRAM_S))
    slowdown: Histogram = field(default_factory=lambda: Histogram(_SLOWDOWN))
    # Of calls that have ended; cached tokens are among those of prompts.
    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    engine_us: int = 0


@dataclass(slots=True)
class Distributions:
    """Of calls and programs that ended since this process began to lead."""

    series: dict[_Key, Series] = field(default_factory=dict)

    def _of(self, row: ProgramRow) -> Series:
        key = (row.tenant, row.name, row.service_class)
        found = self.series.get(key)
        if found is None:
            key = key if len(self.series) < MAX_SERIES else (Tenant("other"), "other", row.service_class)
            found = self.series.setdefault(key, Series())
        return found

    def call_ended(self, row: ProgramRow, call: CallRow) -> None:
        """A call has ended that its engine has reported."""
        series = self._of(row)
        series.calls += 1
        series.prompt_tokens += call.prompt_tokens
        series.cached_tokens += call.cached_tokens
        series.output_tokens += call.output_tokens
        series.engine_us += call.service_us
        wait_us = before_us = call.gateway_us + call.held_us
        after_us, answering = 0, False
        for kind, us in call.phases:
            answering |= kind == PhaseKind.DECODE
            wait_us += us if kind in _WAITING else 0
            if answering:
                after_us += us
            else:
                before_us += us
        series.wait.observe(wait_us / 1e6)
        if call.output_tokens:
            series.first_token.observe(before_us / 1e6)
        if call.output_tokens > 1:
            series.output_token.observe(after_us / 1e6 / (call.output_tokens - 1))

    def program_ended(self, row: ProgramRow) -> None:
        """A program and all its calls have ended; one that had no call is not counted."""
        if not row.calls_completed:
            return
        series, times = self._of(row), row.times
        series.program.observe((row.close_us - row.open_us) / 1e6)
        computing_us = times.prefill_us + times.decode_us
        if computing_us:
            waiting_us = times.gateway_us + times.held_us + times.queue_us + times.preempted_us
            series.slowdown.observe((computing_us + waiting_us) / computing_us)
