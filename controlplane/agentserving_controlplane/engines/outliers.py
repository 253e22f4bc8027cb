"""Passive outlier ejection: an engine whose calls fail one after the other gets none for a while. Pure.

An engine that fails all calls immediately looks idle, so without ejection a load balancer sends it every call. Two
kinds of evidence are counted, each since the engine's last success:

- failures: the connection failed, or the engine answered 5xx. FAILURES in a row eject the engine.
- rejections: the engine answered 4xx. That may be the clients' fault, so REJECTIONS in a row eject the engine only if
  they come from several programs while other engines serve their calls, and never more than half of the engines.

An ejection lasts EJECTION_US, doubled with each further one up to MAX_EJECTION_US. After it one trial call decides.
Ejected engines still serve when no other engine is left: an engine whose process is gone is DOWN (health.py), and the
bad requests of one client must not stop the service for all.
Time is an argument: microseconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from enum import Enum

from agentserving.contract.ids import CallId, ProgramKey

FAILURES, REJECTIONS, REJECTED_PROGRAMS = 3, 5, 3
EJECTION_US, MAX_EJECTION_US = 10_000_000, 300_000_000


class Cause(Enum):
    """Why an engine is ejected."""

    FAILURES = "failed"
    REJECTIONS = "were rejected (HTTP 4xx), while other engines served theirs"


@dataclass(slots=True)
class OutlierRecord:
    """Evidence about one engine since its last success or boot."""

    failures: int = 0
    rejections: int = 0
    rejected_programs: set[ProgramKey] = field(default_factory=set)
    # Consecutive ejections, and the current one.
    ejections: int = 0
    cause: Cause | None = None
    until_us: int = 0
    trial: CallId | None = None

    @property
    def is_ejected(self) -> bool:
        """True until a success, also while the trial is due."""
        return self.cause is not None

    def succeeded(self) -> None:
        """A call of the engine has completed: all evidence is void."""
        self.failures = self.rejections = self.ejections = 0
        self.rejected_programs.clear()
        self.cause = self.trial = None

    def failed(self, now_us: int) -> None:
        """A call failed in the engine or on the way to it."""
        self.failures += 1
        if self.is_ejected:
            self._fail_trial(now_us)
        elif self.failures >= FAILURES:
            self._eject(Cause.FAILURES, now_us)

    def rejected(self, program: ProgramKey, others_serve: bool, now_us: int) -> None:
        """The engine answered a call of a (root) program with 4xx; `others_serve`: other engines serve such calls."""
        self.rejections += 1
        if len(self.rejected_programs) < REJECTED_PROGRAMS:
            self.rejected_programs.add(program)
        if self.is_ejected:
            if self.cause is Cause.REJECTIONS:
                self._fail_trial(now_us)
            else:
                # It answers: the failures are over.
                self.cause = self.trial = None
        elif others_serve and self.rejections >= REJECTIONS and len(self.rejected_programs) >= REJECTED_PROGRAMS:
            self._eject(Cause.REJECTIONS, now_us)

    def _fail_trial(self, now_us: int) -> None:
        # Calls admitted before the ejection may still fail during it: only the end of a trial extends it.
        if now_us >= self.until_us or self.trial is not None:
            self._eject(self.cause or Cause.FAILURES, now_us)

    def _eject(self, cause: Cause, now_us: int) -> None:
        length_us = min(EJECTION_US << min(self.ejections, 10), MAX_EJECTION_US)
        self.cause, self.until_us = cause, now_us + length_us
        self.ejections += 1
        self.trial = None

    def tries(self, call_id: CallId) -> None:
        """A call has been admitted while the engine was ejected: its trial."""
        self.trial = call_id

    def may_try(self, in_flight: Container[CallId], now_us: int) -> bool:
        """True when the ejection is over and a trial call may be sent. A trial that ended without evidence, because its
        client cancelled it for example, is followed by another.
        """
        return self.is_ejected and now_us >= self.until_us and self.trial not in in_flight

    def reason(self) -> str:
        """For people; empty while the engine is not ejected."""
        if self.cause is None:
            return ""
        count = self.failures if self.cause is Cause.FAILURES else self.rejections
        return f"{count} calls in a row {self.cause.value}"
