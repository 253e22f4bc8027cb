"""What the call queue knows of calls and programs. Times are integer microseconds on the caller's clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentserving_engine.policy.levels import LevelTable


@dataclass(frozen=True, slots=True)
class CallFacts:
    """A call as it arrives; `program` is the root program's id, whose account counts."""

    key: str
    program: str
    attained_service_us: int = 0
    program_wait_us: int = 0
    program_arrival_us: int = 0
    managed: bool = True
    # Class of the program: which levels it goes through.
    application: str = ""


@dataclass(frozen=True, slots=True)
class CallStats:
    """Totals of a call since its arrival at this engine."""

    level: int
    service_us: int
    wait_us: int
    demotions: int
    promotions: int
    preemptions: int
    running: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do before the next step: `preempt` worst first, `admit` best first (an estimate: vLLM allocates)."""

    demoted: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    preempt: tuple[str, ...] = ()
    admit: tuple[str, ...] = ()


NOTHING = Decision()


@dataclass(slots=True)
class ProgramState:
    """Account of a program as this engine knows it, and its calls here."""

    attained_us: int
    wait_us: int
    arrival_us: int
    paused: bool = False
    calls: set[str] = field(default_factory=set)


@dataclass(slots=True)
class CallState:
    """A call in the queue. `*_mark_us` are values at the last promotion: only what came after counts for starvation."""

    facts: CallFacts
    table: LevelTable
    level: int
    seq: int
    waiting_since_us: int
    running: bool = False
    # It has been promoted and has not spent its quantum since.
    promoted: bool = False
    service_us: int = 0
    wait_us: int = 0
    quantum_used_us: int = 0
    service_mark_us: int = 0
    wait_mark_us: int = 0
    started_service_us: int = 0
    demotions: int = 0
    promotions: int = 0
    preemptions: int = 0
    version: int = 0

    @property
    def at_best(self) -> bool:
        """Nothing goes before its level."""
        return self.table.ranks[self.level] == self.table.ranks[self.table.best]

    @property
    def rank(self) -> int:
        """Of its level: lower runs first."""
        return self.table.ranks[self.level]

    def stats(self, now_us: int, *, ended: bool = False) -> CallStats:
        """Totals up to now; the wait of one that `ended` is complete."""
        waiting = 0 if ended or self.running else max(0, now_us - self.waiting_since_us)
        return CallStats(
            self.level,
            self.service_us,
            self.wait_us + waiting,
            self.demotions,
            self.promotions,
            self.preemptions,
            self.running,
        )
