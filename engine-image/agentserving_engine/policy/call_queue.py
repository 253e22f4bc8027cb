"""Algorithm 1 of the paper over any policy value: which call runs next on one engine. Pure.

The queue contains every call of the engine, waiting and running. Its work is proportional to what changed: waiting
calls of programs that are not paused or held are in two `LazyHeap`s, `_order` by rank and `_starving` by the time at
which they starve; a call that starts stays in the second until that time comes, and is skipped then. The caller passes
the time and reports what happened.

While calls of several tenants are here, a `FairOrder` takes the place of `_order`: tenants by their accounts, and the
calls of each as before. It stays until the engine is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from agentserving.contract.ids import ProgramKey, Tenant
from agentserving.contract.policy import Order, Policy

from agentserving_engine.policy.class_aging import ClassAging
from agentserving_engine.policy.fair_order import FairOrder, Rank
from agentserving_engine.policy.lazy_heap import LazyHeap
from agentserving_engine.policy.levels import Levels
from agentserving_engine.policy.preemption import Preemption, Room
from agentserving_engine.policy.retention import Place
from agentserving_engine.policy.state import NO_CHANGE, CallFacts, CallState, CallStats, Decision, ProgramState
from agentserving_engine.policy.tenant_accounts import UNTICKETED, TenantAccounts, Usage


class CallQueue:
    """All calls of one engine in the order of a policy; `tenants`: the accounts of an earlier queue."""

    def __init__(self, policy: Policy, tenants: TenantAccounts | None = None) -> None:
        self.policy, self._levels = policy, Levels(policy)
        self._calls: dict[str, CallState] = {}
        self._programs: dict[ProgramKey, ProgramState] = {}
        self._running: dict[str, CallState] = {}
        self.tenants = tenants or TenantAccounts()
        # The tenant of all calls, and None; or None, and the order of several: the same object as `_order`.
        self._tenant: Tenant | None = None
        self._fair: FairOrder | None = None
        self._order: LazyHeap[Rank] | FairOrder = LazyHeap()
        self._starving: LazyHeap[int] = LazyHeap()
        self._aging = ClassAging()
        self._spent: set[str] = set()
        self._seq = 0
        self._preemption = Preemption(self._calls, self._running, self.rank)

    # -- events --------------------------------------------------------------------------------------------------

    def arrive(self, facts: CallFacts, now_us: int) -> None:
        """A call joins the waiting ones. A key that is already here is ignored."""
        if facts.key in self._calls:
            return
        program = self._programs.get(facts.program)
        if program is None:
            program = self._programs[facts.program] = ProgramState(0, 0, facts.program_arrival_us or now_us)
        program.raise_to(facts.attained_service_us, facts.program_wait_us)
        table, level = self._levels.of(facts.class_name, facts.attained_service_us, managed=facts.managed)
        call = CallState(facts=facts, table=table, level=level, seq=self._next_seq(), waiting_since_us=now_us)
        call.enter(level, 0)
        self._calls[facts.key] = program.calls[facts.key] = call
        if facts.program.tenant != self._tenant and self._fair is None:
            self._meet(facts.program.tenant)
        self._enqueue(call, program)
        self._aging.arrived(facts, now_us)

    def start(self, key: str, now_us: int) -> None:
        """A waiting call runs from now on."""
        call = self._calls.get(key)
        if call is None or call.running:
            return
        call.wait_us = call.waited_us(now_us)
        call.running = True
        call.started_service_us, call.started_us = call.service_us, now_us
        self._order.discard(key)
        self._running[key] = call
        self._aging.started(call.facts, now_us)
        if self._fair is not None:
            self._fair.started(call.tenant)

    def preempt(self, key: str, now_us: int) -> None:
        """A running call waits again, at its former position; counted as a preemption."""
        call = self._running.pop(key, None)
        if call is None:
            return
        if self._fair is not None:
            self._fair.stopped(call.tenant)
        call.running = False
        call.held_slot_us = call.slot_us(now_us)
        call.preemptions += 1
        call.waiting_since_us = now_us
        self._aging.preempted(call.facts, now_us)
        self._enqueue(call, self._programs[call.facts.program])

    def charge_tenants(self, dt_us: float, usage: Usage | None = None) -> None:
        """A step took `dt_us`: tenants are charged for every running call, and for what else the step used."""
        if self._fair is not None:
            self._fair.charge(dt_us, usage)

    def charge(self, keys: Iterable[str], dt_us: int) -> None:
        """A step of `dt_us` ran these calls: each has attained all of it (paper: model-execution time)."""
        for call in map(self._calls.get, keys):
            if call is not None:
                call.service_us = service_us = call.service_us + dt_us
                if service_us >= call.spends_at_us:
                    self._spent.add(call.facts.key)

    def finish(self, key: str, now_us: int) -> CallStats | None:
        """Removes a call and returns its totals; None for an unknown key."""
        call = self._calls.pop(key, None)
        if call is None:
            return None
        self._spent.discard(key)
        self._starving.discard(key)
        self._aging.ended(call.facts, now_us, running=call.running)
        if call.running:
            del self._running[key]
            self._preemption.budget.slot_free(now_us)
            if self._fair is not None:
                self._fair.stopped(call.tenant)
                self.tenants.ended(call.slot_us(now_us))
        else:
            self._order.discard(key)
            call.wait_us = call.waited_us(now_us)
        program = self._programs[call.facts.program]
        del program.calls[key]
        if not program.calls and not program.paused:
            del self._programs[call.facts.program]
        if not self._calls:
            self._part()
        return call.stats(call.wait_us)

    def set_account(self, program_key: ProgramKey, attained_us: int, wait_us: int) -> None:
        """The process table's account of a program that has calls here; never lowers what is known."""
        program = self._programs.get(program_key)
        if program is None:
            return
        program.raise_to(attained_us, wait_us)
        for key, call in program.calls.items():
            if key in self._order:
                self._watch_starvation(call, program)

    def pause(self, program_key: ProgramKey, paused: bool, now_us: int) -> list[str]:
        """Pauses or resumes a program; returns the running calls that the caller must preempt."""
        program = self._programs.get(program_key)
        if program is None:
            if not paused:
                return []
            program = self._programs[program_key] = ProgramState(0, 0, now_us)
        if program.paused == paused:
            return []
        program.paused = paused
        self._place(program, now_us)
        if not paused and not program.calls:
            del self._programs[program_key]
        return [key for key, call in program.calls.items() if call.running] if paused else []

    def hold(self, program_key: ProgramKey, held: bool, now_us: int) -> None:
        """Takes a program's waiting calls out of the order, or puts them back."""
        program = self._programs.get(program_key)
        if program is not None and program.held != held:
            program.held = held
            self._place(program, now_us)

    def _place(self, program: ProgramState, now_us: int) -> None:
        """The program was paused, held, or may go on."""
        program.note_stop(now_us)
        for key, call in program.calls.items():
            if call.running:
                continue
            if program.may_start:
                self._enqueue(call, program)
            else:
                self._order.discard(key)

    def set_policy(self, policy: Policy, facts_of: Callable[[str], CallFacts] | None = None) -> None:
        """Executes another policy from now on: every call enters the level of its account and own service.

        `facts_of` returns a call's facts under the new policy, which decides whether accounts count.
        """
        self.policy, self._levels = policy, Levels(policy)
        self._starving.clear()
        self._spent.clear()
        for key, call in self._calls.items():
            facts = call.facts = facts_of(key) if facts_of is not None else call.facts
            attained_us = facts.attained_service_us + call.service_us
            call.table, level = self._levels.of(facts.class_name, attained_us, managed=facts.managed)
            call.enter(*(call.table.best, call.quantum_began_us) if call.promoted else (level, call.service_us))
            program = self._programs[call.facts.program]
            program.attained_us = max(program.attained_us, call.facts.attained_service_us)
            if not call.running:
                self._enqueue(call, program)

    # -- queries -------------------------------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Several tenants have calls here, or have had since the engine was empty."""
        return self._fair is not None

    @property
    def waiting_count(self) -> int:
        """Waiting calls, those of paused programs included."""
        return len(self._calls) - len(self._running)

    @property
    def paused_count(self) -> int:
        """Waiting calls of programs that are paused or held."""
        return self.waiting_count - len(self._order)

    @property
    def settled(self) -> bool:
        """No call waits and no quantum is spent: a decision would change nothing."""
        return len(self._calls) == len(self._running) and not self._spent

    @property
    def paused_programs(self) -> set[ProgramKey]:
        """Programs that are paused, with or without calls here."""
        return {key for key, program in self._programs.items() if program.paused}

    @property
    def running_keys(self) -> list[str]:
        """Keys of running calls, in the order of their starts."""
        return list(self._running)

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def order_changes(self) -> int:
        """Grows whenever the order of the waiting calls may have changed."""
        return self._order.changes

    def __iter__(self) -> Iterator[str]:
        """All calls, in the order of their arrival."""
        return iter(self._calls)

    def __contains__(self, key: object) -> bool:
        return key in self._calls

    def rank(self, key: str) -> Rank:
        """Position in the order: lower runs first. KeyError for an unknown key.

        Of several tenants, the calls of that come first which is furthest behind its share: so all are charged alike
        when vLLM preempts the last ones for want of blocks.
        """
        call = self._calls[key]
        return self._rank(call) if self._fair is None else (self.tenants.standing(call.tenant), *self._rank(call))

    def place(self, key: str) -> Place:
        """Position of the call's program among programs. KeyError for an unknown key."""
        call = self._calls[key]
        return call.rank, self._programs[call.facts.program].arrival_us

    def facts(self, key: str) -> CallFacts:
        """What the queue was given for the call. KeyError for an unknown key."""
        return self._calls[key].facts

    def is_running(self, key: str) -> bool:
        """The call is here and runs."""
        return key in self._running

    def is_paused(self, key: str) -> bool:
        """The call is here and its program is paused."""
        call = self._calls.get(key)
        return call is not None and self._programs[call.facts.program].paused

    def stats(self, key: str, now_us: int) -> CallStats | None:
        """Totals of a call up to now; None for an unknown key."""
        call = self._calls.get(key)
        return None if call is None else call.stats(call.wait_us if call.running else call.waited_us(now_us))

    def stopped_us(self, program_key: ProgramKey, now_us: int) -> int:
        """For how long, since its calls are here, a program has been paused or held; 0 for an unknown one."""
        return program.stopped_until_us(now_us) if (program := self._programs.get(program_key)) is not None else 0

    def spends_after_us(self) -> int | None:
        """Service after which the first running call has spent its quantum; None when no running call has one."""
        after_us = min([call.spends_at_us - call.service_us for call in self._running.values()], default=math.inf)
        return None if after_us == math.inf else int(after_us)

    def best_waiting(self) -> str | None:
        """Key of the waiting call that runs next; None when none may run."""
        found = self._order.first()
        return None if found is None else found[1]

    def iter_waiting(self) -> Iterator[str]:
        """Waiting calls that are not paused, best first; O(log n) for each one taken. No event may happen meanwhile."""
        return iter(self._order)

    def first_waiting(self, count: int) -> list[str]:
        """The first `count` keys of `iter_waiting`."""
        return self._order.first_keys(count)

    # -- the decision --------------------------------------------------------------------------------------------

    def decide(self, now_us: int, room: Room) -> Decision:
        """Demotes, promotes, and selects the running calls to preempt for waiting ones (`preemption`)."""
        demoted = self._demote() if self._spent else ()
        promoted = self._promote(now_us)
        if not self._order:
            return Decision(demoted, promoted) if demoted or promoted else NO_CHANGE
        preempt, admit = self._preemption.select(self._order, self.policy, room, now_us)
        return Decision(demoted, promoted, tuple(preempt), tuple(admit))

    def _demote(self) -> tuple[str, ...]:
        demoted = tuple(sorted(self._spent))
        for key in demoted:
            call = self._calls[key]
            call.demote()
            call.seq = self._next_seq()
            if not call.running:
                self._enqueue(call, self._programs[call.facts.program])
        self._spent.clear()
        return demoted

    def _promote(self, now_us: int) -> tuple[str, ...]:
        promoted = []
        starving = self._starving
        while (first := starving.first()) is not None and first[0] <= now_us:
            key = first[1]
            starving.discard(key)
            if key not in self._order:
                # It started, or its program was paused: it is watched again when it waits again.
                continue
            call = self._calls[key]
            program = self._programs[call.facts.program]
            if call.starves_at_us(program, self.policy.beta_milli) > now_us:
                # Its account has grown since the entry was made.
                self._watch_starvation(call, program)
                continue
            call.promote(now_us)
            promoted.append(self._lift(call))
        if self._aging.due_us <= now_us:
            promoted += [self._lift(self._calls[key]) for key in self._aging.take_due(self._order, self._calls, now_us)]
        return tuple(promoted)

    def _lift(self, call: CallState) -> str:
        call.seq = self._next_seq()
        self._enqueue(call, self._programs[call.facts.program])
        return call.facts.key

    # -- tenants -------------------------------------------------------------------------------------------------

    def _meet(self, tenant: Tenant) -> None:
        """A call has arrived of another tenant than those before: the order becomes fair if there are several.

        Calls without a tenant make none: the policy has them run last.
        """
        if tenant == UNTICKETED:
            return
        if self._tenant is None:
            self._tenant = tenant
            return
        before, calls, rank = self._order, self._calls, self._rank
        fair = FairOrder(self.tenants, lambda key: calls[key].tenant, lambda key: rank(calls[key]), before.changes)
        fair.take_over(before, [call.tenant for call in self._running.values()])
        self._fair = self._order = fair

    def tenants_moved(self) -> bool:
        """Tenants that run calls stand in another order than at the last call of this method."""
        return self._fair is not None and self._fair.reorder_running()

    def _part(self) -> None:
        """The engine is empty: no tenant is owed anything."""
        self._tenant = None
        if self._fair is not None:
            self._fair, self._order = None, LazyHeap(self._order.changes + 1)
            self.tenants.clear()

    # -- the order -----------------------------------------------------------------------------------------------

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _rank(self, call: CallState) -> Rank:
        rank, order = call.rank, self.policy.order
        if order is Order.CALL_ARRIVAL:
            return (rank, 0, call.seq)
        if order is Order.PROGRAM_ARRIVAL:
            return (rank, self._programs[call.facts.program].arrival_us, call.seq)
        return (rank, call.facts.attained_service_us + call.service_us, call.seq)

    def _enqueue(self, call: CallState, program: ProgramState) -> None:
        """The call waits, or its rank has changed while it did."""
        if program.may_start:
            self._order.push(call.facts.key, self._rank(call))
            self._watch_starvation(call, program)

    def _watch_starvation(self, call: CallState, program: ProgramState) -> None:
        if self.policy.beta_milli and not call.at_best:
            self._starving.push(call.facts.key, call.starves_at_us(program, self.policy.beta_milli))
        else:
            self._starving.discard(call.facts.key)
