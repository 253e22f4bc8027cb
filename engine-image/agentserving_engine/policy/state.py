"""What the call queue knows about calls and programs. Times are integer microseconds on the caller's clock. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
from agentserving.contract.ids import ProgramKey, Tenant
from agentserving.contract.service_class import ServiceClass

from agentserving_engine.policy.levels import AGED_BAND, BANDS, LevelTable

# Service below this counts as this in wait / service, so that a new program is not "starved" immediately.
MIN_SERVICE_US = 10_000


class _Identity(msgspec.Struct, frozen=True, gc=False):
    key: str
    program: ProgramKey


class CallFacts(_Identity, frozen=True, gc=False, kw_only=True):
    """A call as it arrives; `program` is the root program, whose account counts."""

    attained_service_us: int = 0
    program_wait_us: int = 0
    # 0 = unknown: the program counts as arriving with this call.
    program_arrival_us: int = 0
    # False for requests without an account of their own: they run behind all others.
    managed: bool = True
    # Class of the program: selects the levels its calls go through.
    class_name: str = ""
    # Calls of a worse one run behind all levels of a better one.
    service_class: ServiceClass = ServiceClass.STANDARD


class CallStats(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of a call since its arrival at this engine."""

    level: int = 0
    service_us: int = 0
    wait_us: int = 0
    demotions: int = 0
    promotions: int = 0
    preemptions: int = 0
    running: bool = False


class Decision(msgspec.Struct, frozen=True):
    """What to do before the next step. `preempt`: worst call first. `admit`: best first, an estimate of what fits."""

    demoted: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    preempt: tuple[str, ...] = ()
    admit: tuple[str, ...] = ()


NO_CHANGE = Decision()


@dataclass(slots=True)
class ProgramState:
    """Account of a program as this engine knows it, and its calls here."""

    attained_us: int
    wait_us: int
    arrival_us: int
    paused: bool = False
    # Not admitted to the working set: its calls wait outside of the order.
    held: bool = False
    # Time in which its waiting calls were out of the order, and since when they are.
    stopped_us: int = 0
    stopped_since_us: int | None = None
    # In the order of their arrival, in which they are visited: a set's order would differ from process to process.
    calls: dict[str, CallState] = field(default_factory=dict)

    @property
    def may_start(self) -> bool:
        """Its waiting calls are in the order."""
        return not (self.paused or self.held)

    def note_stop(self, now_us: int) -> None:
        """It was paused, held, or may go on."""
        if self.may_start and self.stopped_since_us is not None:
            self.stopped_us += max(0, now_us - self.stopped_since_us)
            self.stopped_since_us = None
        elif not self.may_start and self.stopped_since_us is None:
            self.stopped_since_us = now_us

    def stopped_until_us(self, now_us: int) -> int:
        """Time in which its waiting calls were out of the order, up to now."""
        since_us = self.stopped_since_us
        return self.stopped_us + (0 if since_us is None else max(0, now_us - since_us))

    def raise_to(self, attained_us: int, wait_us: int) -> None:
        """Takes over an account; never lowers what is known."""
        self.attained_us = max(self.attained_us, attained_us)
        self.wait_us = max(self.wait_us, wait_us)


class CallState(msgspec.Struct, kw_only=True):
    """A call in the queue. `*_mark_us`: values at the last promotion; starvation counts only what came after it."""

    facts: CallFacts
    table: LevelTable
    level: int
    # Position among calls of equal rank: a demotion or promotion moves the call to the end.
    seq: int
    waiting_since_us: int
    running: bool = False
    # Promoted, and its quantum is not spent yet.
    promoted: bool = False
    service_us: int = 0
    wait_us: int = 0
    # Service of this call at which its present quantum began, and at which it is spent (infinite: the level has none).
    quantum_began_us: int = 0
    spends_at_us: float = math.inf
    service_mark_us: int = 0
    wait_mark_us: int = 0
    started_service_us: int = 0
    # When it got the slot that it runs in, and how long it has held slots before that.
    started_us: int = 0
    held_slot_us: int = 0
    demotions: int = 0
    promotions: int = 0
    preemptions: int = 0
    # Its class of service waited too long behind better ones: it goes first until it ends.
    aged: bool = False

    @property
    def tenant(self) -> Tenant:
        """Whose call it is."""
        return self.facts.program.tenant

    @property
    def at_best(self) -> bool:
        """No level of any class runs before the call's, in its class of service."""
        return self.aged or self.promoted or self.table.ranks[self.level] == self.table.front_rank

    @property
    def rank(self) -> int:
        """Rank of the call's level, or the best one while it is promoted, in its class of service: lower runs first."""
        if self.aged:
            return AGED_BAND
        rank = self.table.front_rank if self.promoted else self.table.ranks[self.level]
        return rank + BANDS[self.facts.service_class]

    def slot_us(self, now_us: int) -> int:
        """How long it has held a slot since it arrived; the call is running."""
        return self.held_slot_us + max(0, now_us - self.started_us)

    def waited_us(self, now_us: int) -> int:
        """Wait up to now; the call is waiting."""
        return self.wait_us + max(0, now_us - self.waiting_since_us)

    def starves_at_us(self, program: ProgramState, beta_milli: int) -> int:
        """When wait / service reaches beta if the call keeps waiting (Algorithm 1, anti-starvation)."""
        floor = max(MIN_SERVICE_US, self.table.floors[self.level])
        service = max(floor, program.attained_us + self.service_us - self.service_mark_us)
        waited = program.wait_us + self.wait_us - self.wait_mark_us
        return self.waiting_since_us + -(-beta_milli * service // 1000) - waited

    def enter(self, level: int, quantum_began_us: int) -> None:
        """The call is in `level` from now on."""
        self.level, self.quantum_began_us = level, quantum_began_us
        self.spends_at_us = quantum_began_us + quantum_us if (quantum_us := self.table.quanta[level]) else math.inf

    def demote(self) -> None:
        """Moves down past every level whose quantum is spent."""
        table, level, began_us = self.table, self.level, self.quantum_began_us
        while level < table.last and self.service_us - began_us >= table.quanta[level]:
            began_us += table.quanta[level]
            level += 1
            self.demotions += 1
        self.enter(level, began_us)
        self.promoted = False

    def promote(self, now_us: int) -> None:
        """Moves to the best level, ahead of other classes; the wait for the next promotion starts now."""
        self.wait_us = self.waited_us(now_us)
        self.waiting_since_us = now_us
        self.wait_mark_us, self.service_mark_us = self.wait_us, self.service_us
        self.enter(self.table.best, self.service_us)
        self.promotions += 1
        self.promoted = True

    def stats(self, wait_us: int) -> CallStats:
        """Totals, with the wait up to now."""
        return CallStats(
            level=self.level,
            service_us=self.service_us,
            wait_us=wait_us,
            demotions=self.demotions,
            promotions=self.promotions,
            preemptions=self.preemptions,
            running=self.running,
        )
