"""Algorithm 1 of the paper over any policy value: who runs next on one engine.

The queue holds every call of the engine, waiting and running. Work is in proportion to what changed: waiting calls sit
in a heap by rank and in a heap by the time at which they starve; entries are never searched for, they carry the call's
version and are skipped when it has moved on. Pure: the caller gives the time and tells what happened.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from agentserving.contract.policy import Order, Policy

from agentserving_engine.policy.levels import Levels
from agentserving_engine.policy.retention import Place
from agentserving_engine.policy.selection import select
from agentserving_engine.policy.slot_pace import Allowance, SlotPace
from agentserving_engine.policy.state import NOTHING, CallFacts, CallState, CallStats, Decision, ProgramState

Rank = tuple[int, int, int]

# A resumed call is not preempted again before it got this much service: else two calls could take turns for ever.
PROTECTED_SERVICE_US = 100_000
# A preemption must save this many times what it costs (measured: 2 is best or near it from 12 ms to 1 ms a resume).
PAYBACK = 2
# All together they may cost this share of the engine's time, with so much at once: where preempted calls lose their KV
# nobody ever ends, every newcomer seems to wait for ever, and each single preemption seems to pay.
RECOMPUTE_SHARE, RECOMPUTE_BURST_US = 0.1, 1_000_000.0
# Service below this counts as this when wait / service is formed, so that newcomers are not "starved" at once.
MIN_SERVICE_US = 10_000


class CallQueue:
    """All calls of one engine in the order of a policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._levels = policy, Levels(policy)
        self._calls: dict[str, CallState] = {}
        self._programs: dict[str, ProgramState] = {}
        self._running: dict[str, CallState] = {}
        self._waiting = 0
        self._held = 0
        self._order: list[tuple[Rank, int, str]] = []
        self._starving: list[tuple[int, int, str]] = []
        self._spent: set[str] = set()
        self._seq = 0
        self._pace = SlotPace()
        self._allowance = Allowance(RECOMPUTE_SHARE, RECOMPUTE_BURST_US)

    # -- what happened -------------------------------------------------------------------------------------------

    def arrive(self, facts: CallFacts, now_us: int) -> None:
        """A call joins the waiting ones. A key that is here already is ignored."""
        if facts.key in self._calls:
            return
        program = self._programs.get(facts.program)
        if program is None:
            arrival = facts.program_arrival_us or now_us
            program = self._programs[facts.program] = ProgramState(
                facts.attained_service_us, facts.program_wait_us, arrival
            )
        program.attained_us = max(program.attained_us, facts.attained_service_us)
        program.wait_us = max(program.wait_us, facts.program_wait_us)
        program.calls.add(facts.key)
        table, level = self._levels.of(facts.application, facts.attained_service_us, managed=facts.managed)
        call = CallState(facts, table, level, self._next_seq(), now_us)
        self._calls[facts.key] = call
        self._waiting += 1
        self._enqueue(call, program)

    def start(self, key: str, now_us: int) -> None:
        """A waiting call runs from now on."""
        call = self._calls.get(key)
        if call is None or call.running:
            return
        call.wait_us += max(0, now_us - call.waiting_since_us)
        call.running = True
        call.started_service_us = call.service_us
        call.version += 1
        self._waiting -= 1
        self._running[key] = call

    def preempt(self, key: str, now_us: int) -> None:
        """A running call waits again, at its old place; counted as a preemption."""
        call = self._calls.get(key)
        if call is None or not call.running:
            return
        call.running = False
        call.preemptions += 1
        call.waiting_since_us = now_us
        del self._running[key]
        self._waiting += 1
        self._enqueue(call, self._programs[call.facts.program])

    def charge(self, keys: Iterable[str], dt_us: int) -> None:
        """A step of `dt_us` ran these calls: each has attained all of it (paper: model-execution time)."""
        for key in keys:
            call = self._calls.get(key)
            if call is None:
                continue
            call.service_us += dt_us
            call.quantum_used_us += dt_us
            quantum = call.table.quanta[call.level]
            if quantum and call.quantum_used_us >= quantum:
                self._spent.add(key)

    def finish(self, key: str, now_us: int) -> CallStats | None:
        """The call is gone; its totals, or None for a stranger."""
        call = self._calls.pop(key, None)
        if call is None:
            return None
        call.version += 1
        self._spent.discard(key)
        if call.running:
            del self._running[key]
            self._pace.slot_free(now_us)
        else:
            self._waiting -= 1
            call.wait_us += max(0, now_us - call.waiting_since_us)
        program = self._programs[call.facts.program]
        if not call.running and program.paused:
            self._held -= 1
        program.calls.discard(key)
        if not program.calls and not program.paused:
            del self._programs[call.facts.program]
        return call.stats(now_us, ended=True)

    def set_account(self, program_id: str, attained_us: int, wait_us: int) -> None:
        """The table's account of a program that has calls here; never lowers what is known."""
        program = self._programs.get(program_id)
        if program is None:
            return
        program.attained_us = max(program.attained_us, attained_us)
        program.wait_us = max(program.wait_us, wait_us)
        for key in program.calls:
            call = self._calls[key]
            if not call.running and not program.paused:
                self._watch_starvation(call, program)

    def pause(self, program_id: str, paused: bool, now_us: int) -> list[str]:
        """Holds a program or lets it go; gives the running calls that the caller must preempt."""
        program = self._programs.get(program_id)
        if program is None:
            if not paused:
                return []
            program = self._programs[program_id] = ProgramState(0, 0, now_us)
        if program.paused == paused:
            return []
        waiting = [self._calls[k] for k in sorted(program.calls) if not self._calls[k].running]
        program.paused = paused
        self._held += len(waiting) if paused else -len(waiting)
        for call in waiting:
            call.version += 1
            if not paused:
                self._push(call, program)
        if not paused and not program.calls:
            del self._programs[program_id]
        return sorted(k for k in program.calls if self._calls[k].running) if paused else []

    def set_policy(self, policy: Policy, facts_of: Callable[[str], CallFacts] | None = None) -> None:
        """Another policy from now on: every call enters the level that its account and own service stand at.

        `facts_of` tells the calls' facts anew: which account counts depends on the policy.
        """
        self._policy, self._levels = policy, Levels(policy)
        self._order.clear()
        self._starving.clear()
        self._spent.clear()
        for key, call in self._calls.items():
            facts = call.facts = facts_of(key) if facts_of is not None else call.facts
            attained_us = facts.attained_service_us + call.service_us
            call.table, level = self._levels.of(facts.application, attained_us, managed=facts.managed)
            if call.promoted:
                call.level = call.table.best
            else:
                call.level, call.quantum_used_us = level, 0
            program = self._programs[call.facts.program]
            program.attained_us = max(program.attained_us, call.facts.attained_service_us)
            call.version += 1
            if not call.running and not program.paused:
                self._push(call, program)

    # -- questions -----------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    @property
    def waiting_count(self) -> int:
        """Calls that wait, held ones included."""
        return self._waiting

    @property
    def settled(self) -> bool:
        """Nobody waits and no quantum is spent: a decision would change nothing."""
        return not self._waiting and not self._spent

    @property
    def held_count(self) -> int:
        """Waiting calls of paused programs."""
        return self._held

    @property
    def held_programs(self) -> set[str]:
        """Programs that are paused, with or without calls here."""
        return {program_id for program_id, program in self._programs.items() if program.paused}

    @property
    def running_keys(self) -> list[str]:
        """Keys of running calls, in order of their start."""
        return list(self._running)

    def __contains__(self, key: str) -> bool:
        return key in self._calls

    def rank(self, key: str) -> Rank:
        """Place in the order: lower runs first. KeyError for a stranger."""
        return self._rank(self._calls[key])

    def place(self, key: str) -> Place:
        """Of the call's program among programs. KeyError for a stranger."""
        call = self._calls[key]
        return call.rank, self._programs[call.facts.program].arrival_us

    def is_held(self, key: str) -> bool:
        """True when the call's program is paused."""
        call = self._calls.get(key)
        return call is not None and self._programs[call.facts.program].paused

    def stats(self, key: str, now_us: int) -> CallStats | None:
        """Totals of a call up to now."""
        call = self._calls.get(key)
        return None if call is None else call.stats(now_us)

    def spends_after_us(self) -> int | None:
        """Service after which the first of the running calls has spent its quantum; None when none has one."""
        quanta = ((call, call.table.quanta[call.level]) for call in self._running.values())
        return min((quantum - call.quantum_used_us for call, quantum in quanta if quantum), default=None)

    def best_waiting(self) -> str | None:
        """Key of the waiting call that runs next; None when none may."""
        order, calls = self._order, self._calls
        while order:
            _, version, key = order[0]
            call = calls.get(key)
            if call is not None and call.version == version:
                return key
            heapq.heappop(order)
        return None

    def iter_waiting(self) -> Iterator[str]:
        """Waiting calls best first; costs O(log n) for each one taken."""
        taken: list[tuple[Rank, int, str]] = []
        try:
            while (key := self.best_waiting()) is not None:
                taken.append(heapq.heappop(self._order))
                yield key
        finally:
            for entry in taken:
                heapq.heappush(self._order, entry)

    # -- the decision --------------------------------------------------------------------------------------------

    def decide(
        self,
        now_us: int,
        *,
        slots: int,
        free_blocks: int,
        need_blocks: Callable[[str], int],
        returns_blocks: Callable[[str], int],
        preemptable: Callable[[str], bool] = lambda key: True,
        admissible: Callable[[str], bool] = lambda key: True,
        resume_us: Callable[[str], float] = lambda key: 0,
    ) -> Decision:
        """Demotes, promotes, and says which running calls must give way to which waiting ones.

        `slots`: running calls at most; blocks as the engine's allocator counts them. A running call gives way only to
        a call of a better level, never within its level, and only when the newcomer then fits. A waiting call that is
        not `admissible` could not start whoever gave way: it is passed over.

        `resume_us` says what computing a call's lost tokens again takes. The whole batch stands still for that long,
        while the newcomer would have had the next slot that comes free: a preemption that does not pay is not made, nor
        one that would let recomputation take more than its share of the engine's time.
        """
        demoted = self._demote() if self._spent else ()
        promoted = self._promote(now_us)
        if self._waiting == self._held:
            return Decision(demoted, promoted) if demoted or promoted else NOTHING
        preempt, admit = select(
            self.iter_waiting(),
            lambda: self._victims(now_us, preemptable, resume_us),
            lambda key: self._calls[key].rank,
            free_slots=slots - len(self._running),
            free_blocks=free_blocks,
            max_preemptions=self._policy.max_preemptions,
            need_blocks=need_blocks,
            returns_blocks=returns_blocks,
            admissible=admissible,
        )
        for key in preempt:
            self._allowance.spend(resume_us(key))
        return Decision(demoted, promoted, tuple(preempt), tuple(admit))

    def _victims(self, now_us: int, preemptable: Callable[[str], bool], resume_us: Callable[[str], float]) -> list[str]:
        """Running calls that may be preempted, worst last."""
        bearable_us = min(
            self._pace.wait_us(now_us) / (PAYBACK * max(1, len(self._running))), self._allowance.left_us(now_us)
        )
        able = [
            key
            for key, call in self._running.items()
            if (call.preemptions == 0 or call.service_us - call.started_service_us >= PROTECTED_SERVICE_US)
            and preemptable(key)
            and resume_us(key) <= bearable_us
        ]
        return sorted(able, key=self.rank)

    def _demote(self) -> tuple[str, ...]:
        demoted = []
        for key in sorted(self._spent):
            call = self._calls[key]
            table = call.table
            while call.level < table.last and call.quantum_used_us >= table.quanta[call.level]:
                call.quantum_used_us -= table.quanta[call.level]
                call.level += 1
                call.demotions += 1
            call.seq = self._next_seq()
            call.version += 1
            call.promoted = False
            if not call.running:
                self._enqueue(call, self._programs[call.facts.program], moved=True)
            demoted.append(key)
        self._spent.clear()
        return tuple(demoted)

    def _promote(self, now_us: int) -> tuple[str, ...]:
        promoted = []
        starving = self._starving
        while starving and starving[0][0] <= now_us:
            _, version, key = heapq.heappop(starving)
            call = self._calls.get(key)
            if call is None or call.version != version or call.at_best:
                continue
            program = self._programs[call.facts.program]
            if self._starves_at(call, program) > now_us:
                self._watch_starvation(call, program)
                continue
            call.wait_us += max(0, now_us - call.waiting_since_us)
            call.waiting_since_us = now_us
            call.wait_mark_us, call.service_mark_us = call.wait_us, call.service_us
            call.level, call.quantum_used_us = call.table.best, 0
            call.seq = self._next_seq()
            call.promotions += 1
            call.promoted = True
            call.version += 1
            self._push(call, program)
            promoted.append(key)
        return tuple(promoted)

    # -- heaps ---------------------------------------------------------------------------------------------------

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _rank(self, call: CallState) -> Rank:
        rank = call.table.ranks[call.level]
        match self._policy.order:
            case Order.CALL_ARRIVAL:
                return (rank, 0, call.seq)
            case Order.PROGRAM_ARRIVAL:
                return (rank, self._programs[call.facts.program].arrival_us, call.seq)
            case Order.ATTAINED_SERVICE:
                return (rank, call.facts.attained_service_us + call.service_us, call.seq)

    def _enqueue(self, call: CallState, program: ProgramState, *, moved: bool = False) -> None:
        call.version += 1
        if program.paused:
            self._held += 0 if moved else 1
        else:
            self._push(call, program)

    def _push(self, call: CallState, program: ProgramState) -> None:
        heapq.heappush(self._order, (self._rank(call), call.version, call.facts.key))
        self._watch_starvation(call, program)

    def _watch_starvation(self, call: CallState, program: ProgramState) -> None:
        if self._policy.beta_milli and not call.at_best:
            heapq.heappush(self._starving, (self._starves_at(call, program), call.version, call.facts.key))

    def _starves_at(self, call: CallState, program: ProgramState) -> int:
        """When wait / service reaches beta, if the call goes on waiting (Algorithm 1, anti-starvation)."""
        floor = MIN_SERVICE_US if call.facts.managed else max(MIN_SERVICE_US, call.table.lower[call.level])
        service = max(floor, program.attained_us + call.service_us - call.service_mark_us)
        waited = program.wait_us + call.wait_us - call.wait_mark_us
        return call.waiting_since_us + -(-self._policy.beta_milli * service // 1000) - waited
