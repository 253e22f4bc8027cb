"""Everything that decides for one engine: the call queue, the retention of KV and the learned cost of prefill. Pure.

vLLM with the plugin, the simulator and engines in virtual time run this code; each of them is an `Engine` here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import Policy

from agentserving_engine.policy.call_queue import CallQueue
from agentserving_engine.policy.kv_traits import KvTraits
from agentserving_engine.policy.preemption import Room
from agentserving_engine.policy.prefill_cost import PrefillCost, is_overwritten, wanted_blocks
from agentserving_engine.policy.residents import Calls, Tier
from agentserving_engine.policy.retention import EndedContext, Memory, Retention, Wanted
from agentserving_engine.policy.state import NO_CHANGE, CallFacts, CallStats, Decision
from agentserving_engine.policy.tenant_accounts import Usage
from agentserving_engine.policy.tool_waits import Origin
from agentserving_engine.policy.working_set import WorkingSet


class Engine(Protocol):
    """What the policy asks the engine. Tokens and blocks of a request are counted as by the engine's allocator."""

    @property
    def kv(self) -> KvTraits:
        """How the engine's KV cache behaves."""

    def slots(self) -> int:
        """Requests that may run at the same time."""

    def free_blocks(self) -> int:
        """Blocks that calls may take when they start."""

    def coming_blocks(self) -> int:
        """Blocks that become free, without a preemption, when the steps in flight end."""

    def running_tokens(self) -> int:
        """Tokens of all running requests: prompts and answers."""

    def tokens(self, key: str) -> int:
        """Tokens of a request: its prompt and its answer so far."""

    def computed_tokens(self, key: str) -> int:
        """Tokens of a request whose KV is in the cache."""

    def released_blocks(self, key: str) -> int:
        """Blocks that become free when the running request is preempted."""

    def preemptable(self, key: str) -> bool:
        """The request runs and may be preempted."""

    def admission_check(self) -> Callable[[str], bool]:
        """For one decision: False for a waiting request that could not start whatever was preempted."""

    def context(self, key: str) -> Sequence[object]:
        """The units of a request's context so far, root first."""

    def cached_blocks(self, key: str) -> tuple[int, int]:
        """(blocks of a waiting request that are in the cache, those of them that no request references)."""


class CallEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A call that ends now: where its context is, and whether the program may go on with it."""

    key: str
    origin: Origin
    context: Sequence[object]
    tokens: int


class EnginePolicy:
    """Decides which calls run and which may start; times are microseconds on the caller's clock."""

    def __init__(self, policy: Policy, engine: Engine, memory: Memory) -> None:
        self._engine = engine
        self.queue = CallQueue(policy)
        self.retention = Retention(memory)
        self.prefill = PrefillCost()
        self._memory = memory
        self.working_set: WorkingSet | None = None
        self._adopt_working_set(0)

    def arrive(self, facts: CallFacts, now_us: int) -> None:
        """A call has arrived."""
        known = facts.key in self.queue
        self.queue.arrive(facts, now_us)
        self.retention.call_arrived(facts.program, now_us)
        working_set = None if known else self.working_set
        if working_set is not None and not working_set.call_arrived(facts.key, facts.program, now_us):
            self.queue.hold(facts.program, True, now_us)

    def rebuild(self, calls: Iterable[CallFacts], running: Iterable[str], now_us: int) -> None:
        """Replaces the queue by one of these calls, in the order of their arrival.

        Policy, pauses and tenants' accounts stay; how much of its quantum each call has spent is lost.
        """
        before = self.queue
        before.tenants.all_stopped()
        self.queue = CallQueue(before.policy, before.tenants)
        for program in before.paused_programs:
            self.queue.pause(program, True, now_us)
        for facts in calls:
            self.queue.arrive(facts, now_us)
        for key in running:
            self.queue.start(key, now_us)
        self._adopt_working_set(now_us)

    def set_policy(self, policy: Policy, facts_of: Callable[[str], CallFacts] | None = None, now_us: int = 0) -> None:
        """Executes another policy from the next decision on; KV retained under the previous one is released."""
        was_bounded = self.queue.policy.working_set
        self.queue.set_policy(policy, facts_of)
        self.retention.clear()
        if policy.working_set != was_bounded:
            self._adopt_working_set(now_us)

    def _adopt_working_set(self, now_us: int) -> None:
        """Begins or ends to bound the working set: all programs that are here are admitted."""
        queue, engine = self.queue, self._engine
        for program in self.working_set.waiting_programs if self.working_set else ():
            queue.hold(program, False, now_us)
        self.working_set = None
        if not queue.policy.working_set or engine.kv.working_set_obstacle:
            return
        calls = Calls(
            context=engine.context,
            place=lambda key: self.queue.place(key),
            order=lambda key: self.queue.rank(key),
            is_running=lambda key: self.queue.is_running(key),
            service_class=lambda key: self.queue.facts(key).service_class,
        )
        self.working_set = WorkingSet(self._memory, calls)
        for key in queue:
            self.working_set.adopt(key, queue.facts(key).program, now_us)

    def _bound(self, working_set: WorkingSet, now_us: int) -> None:
        kv = self._engine.kv
        tier = Tier.of(kv.blocks, kv.host_blocks, self.prefill.us_per_token * kv.block_size)
        admitted, displaced = working_set.admit(now_us, tier)
        for program in displaced:
            self.queue.hold(program, True, now_us)
        for program in admitted:
            self.queue.hold(program, False, now_us)

    def retain(self, end: CallEnd, now_us: int) -> None:
        """Retains the context of a call that is about to leave the queue, if the policy retains KV."""
        if self.working_set is not None:
            self._keep_in_working_set(self.working_set, end, now_us)
            return
        milli = self.queue.policy.retention_milli
        if not milli or self._engine.kv.retention_obstacle or end.key not in self.queue:
            return
        facts = self.queue.facts(end.key)
        if not facts.managed:
            return
        ended = EndedContext(
            program=facts.program,
            origin=end.origin,
            class_name=facts.class_name,
            place=self.queue.place(end.key),
            context=end.context,
            worth_us=end.tokens * self.prefill.us_per_token * milli / 1000,
        )
        self.retention.call_ended(ended, now_us)

    def finish(self, key: str, now_us: int) -> CallStats | None:
        """A call has ended; its totals, or None for an unknown key."""
        if self.working_set is not None:
            self.working_set.call_gone(key)
        return self.queue.finish(key, now_us)

    def _keep_in_working_set(self, working_set: WorkingSet, end: CallEnd, now_us: int) -> None:
        if end.key in self.queue and self.queue.facts(end.key).managed:
            kv = self._engine.kv
            tier = Tier.of(kv.blocks, kv.host_blocks, self.prefill.us_per_token * kv.block_size)
            working_set.call_ended(end.key, self.queue.place(end.key), end.context, now_us + tier.lease_us)

    def program_ended(self, program: ProgramKey) -> None:
        """The program is over: nobody comes back to its contexts."""
        self.retention.program_ended(program)
        if self.working_set is not None:
            self.working_set.program_ended(program)

    def next_end_us(self) -> float:
        """When calls may start although none came or ended; infinite when never."""
        kept_us = self.retention.next_end_us()
        due_us = math.inf if self.working_set is None else self.working_set.due_us
        return due_us if kept_us is None else min(kept_us, due_us)

    def charge_tenants(self, dt_us: int, tokens: Mapping[str, int]) -> None:
        """A step of `dt_us` has computed so many tokens of each request.

        The time of prompts is that of the tenants whose prompts they are; the rest of the step is shared by those that
        hold slots and KV.
        """
        queue, engine = self.queue, self._engine
        if not queue.is_shared:
            return
        prompts: Counter[Tenant] = Counter()
        held: Counter[Tenant] = Counter()
        for key in queue.running_keys:
            tenant = queue.facts(key).program.tenant
            held[tenant] += engine.computed_tokens(key)
            prompts[tenant] += max(0, tokens.get(key, 0) - 1)
        prompts_us = min(float(dt_us), prompts.total() * self.prefill.us_per_token)
        # Calls with the same prefix share its blocks: what they hold together is what is not free.
        in_use = min(1.0, max(0.0, 1 - engine.free_blocks() / max(1, engine.kv.blocks)))
        part = in_use / max(1, held.total())
        queue.charge_tenants(
            dt_us - prompts_us,
            Usage(
                slots=engine.slots(),
                kv={tenant: part * tokens for tenant, tokens in held.items()},
                own_us={tenant: prompts_us * tokens / max(1, prompts.total()) for tenant, tokens in prompts.items()},
            ),
        )

    def tool_wait(self, root: ProgramKey, origin: Origin, *, waiting: bool, expected_us: int, now_us: int) -> None:
        """A program has begun or ended a tool wait."""
        if waiting:
            self.retention.tool_wait_began(root, origin, expected_us, now_us)
        else:
            self.retention.tool_wait_ended(root, origin)

    def decide(self, now_us: int) -> Decision:
        """Demotions and promotions are done; the caller preempts."""
        queue, engine = self.queue, self._engine
        if self.working_set is not None:
            self._bound(self.working_set, now_us)
        if queue.settled:
            return NO_CHANGE
        kv, free_blocks = engine.kv, engine.free_blocks() + engine.coming_blocks()
        room = Room(
            slots=engine.slots(),
            free_blocks=free_blocks,
            need_blocks=lambda key: kv.needed(engine.tokens(key)),
            returns_blocks=engine.released_blocks,
            preemptable=engine.preemptable,
            admissible=engine.admission_check(),
            resume_us=self._resume_cost(free_blocks),
        )
        return queue.decide(now_us, room)

    def _resume_cost(self, free_blocks: int) -> Callable[[str], float]:
        """Time to recompute what a running request would lose, for one decision.

        Most decisions price no preemption, and then the waiting calls' blocks are not estimated.
        """
        engine, us_per_token = self._engine, self.prefill.us_per_token
        block_size = engine.kv.block_size
        loses_all: bool | None = None

        def resume_us(key: str) -> float:
            nonlocal loses_all
            if loses_all is None:
                loses_all = is_overwritten(engine.kv.findable, free_blocks, self._waiting_blocks())
            computed = engine.computed_tokens(key)
            return (computed if loses_all else computed % block_size) * us_per_token

        return resume_us

    def _waiting_blocks(self) -> int:
        waiting = self.queue.waiting_count
        if not waiting or self._engine.kv.reloadable:
            return 0
        return wanted_blocks(waiting, self.queue.running_count, self._engine.running_tokens(), self._engine.kv)

    def startable(
        self, now_us: int, *, slots: int, taken_tokens: int, waiting: Iterable[str], whole_order: bool = True
    ) -> list[str] | None:
        """The waiting calls that may start now, best first; None when all may.

        `slots`: free ones; `taken_tokens`: tokens computed since boot. `waiting` comes best first; `whole_order` is
        False when calls are missing from it that will be back in the next step.
        """
        if self.working_set is not None:
            if not self._engine.kv.reloadable:
                self.working_set.refresh(self._engine.kv.taken(taken_tokens), self._engine.free_blocks())
            return None
        if self.retention.empty:
            return None
        free_blocks = self._engine.free_blocks()
        self.retention.refresh(self._engine.kv.taken(taken_tokens), free_blocks)
        return self.retention.startable(
            waiting,
            now_us,
            slots=slots,
            free_blocks=free_blocks,
            wanted=self._wanted,
            order=self.queue.order_changes if whole_order else None,
        )

    def _wanted(self, key: str) -> Wanted:
        engine = self._engine
        cached, idle = engine.cached_blocks(key)
        program, place = self.queue.facts(key).program, self.queue.place(key)
        return Wanted(program, place, engine.kv.needed(engine.tokens(key)) - cached, idle)


def origin_of(program_id: str, thread_id: str = "") -> Origin:
    """The origin of a call's context."""
    return Origin(ProgramId(program_id), thread_id)
