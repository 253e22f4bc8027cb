"""Selects the running calls to preempt for waiting ones: with one tenant as in Algorithm 1, and with several. Pure.

A running call is preempted only for a call of a better level, never of its own, and only if that call then fits; with
several tenants also for a call of a tenant to which its own is too far ahead.

Resuming a call costs the recomputation of its lost tokens. The whole batch stands still for that long, while the new
call could take the next slot that comes free: a preemption that does not pay is not made, nor one that would let
recomputation exceed its share of the engine's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agentserving.contract.ids import Tenant
from agentserving.contract.policy import Policy

from agentserving_engine.policy.fair_order import FairOrder, Rank
from agentserving_engine.policy.lazy_heap import LazyHeap
from agentserving_engine.policy.selection import select
from agentserving_engine.policy.slot_pace import PreemptionBudget
from agentserving_engine.policy.state import CallState
from agentserving_engine.policy.tenant_accounts import QUANTUM_US

# A resumed call is not preempted again before it has received this much service: otherwise two calls could take turns
# for ever.
PROTECTED_SERVICE_US = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the engine has for one decision; blocks are counted as by its allocator."""

    # The maximum number of running calls.
    slots: int
    free_blocks: int
    need_blocks: Callable[[str], int]
    returns_blocks: Callable[[str], int]
    preemptable: Callable[[str], bool] = lambda key: True
    # False for a waiting call that could not start whatever was preempted: it is passed over.
    admissible: Callable[[str], bool] = lambda key: True
    # Time to recompute what a running call would lose.
    resume_us: Callable[[str], float] = lambda key: 0


class Preemption:
    """Selects with the calls of a queue, whose `rank` orders running calls; keeps what preemptions may still cost."""

    def __init__(
        self, calls: Mapping[str, CallState], running: Mapping[str, CallState], rank: Callable[[str], Rank]
    ) -> None:
        self._calls, self._running, self._rank = calls, running, rank
        self.budget = PreemptionBudget()

    def select(
        self, order: LazyHeap[Rank] | FairOrder, policy: Policy, room: Room, now_us: int
    ) -> tuple[list[str], list[str]]:
        """(calls to preempt, calls to admit)."""
        if isinstance(order, FairOrder):
            victims_of = self._between_tenants(order, policy, room, now_us)
            # Fairness between tenants holds whatever the policy does inside.
            max_preemptions = max(1, policy.max_preemptions)
        else:
            victims_of, max_preemptions = self._by_level(room, now_us), policy.max_preemptions
        preempt, admit = select(
            iter(order),
            victims_of,
            free_slots=room.slots - len(self._running),
            free_blocks=room.free_blocks,
            max_preemptions=max_preemptions,
            need_blocks=room.need_blocks,
            returns_blocks=room.returns_blocks,
            admissible=room.admissible,
        )
        for key in preempt:
            self.budget.spend(room.resume_us(key))
        return preempt, admit

    def _by_level(self, room: Room, now_us: int) -> Callable[[str, Sequence[str]], list[str]]:
        """With one tenant, calls of worse levels. They are looked for once: later waiting calls are no better."""
        calls = self._calls
        victims: list[str] | None = None

        def victims_of(key: str, preempt: Sequence[str]) -> list[str]:
            nonlocal victims
            rank = calls[key].rank
            if victims is None:
                victims = self._victims(lambda call: call.rank > rank, room, now_us)
            else:
                victims = [victim for victim in victims if calls[victim].rank > rank]
            return victims

        return victims_of

    def _between_tenants(
        self, order: FairOrder, policy: Policy, room: Room, now_us: int
    ) -> Callable[[str, Sequence[str]], list[str]]:
        """With several: a tenant's own calls are preempted as its policy says, another's if that tenant owes it time.

        `select` stops at the first call that does not fit here as well: if tenants behind it could go on exchanging
        their own calls, one would exchange them for ever and compute nothing but prompts.
        """
        accounts, calls = order.accounts, self._calls
        # The tenant that the newest victims made room for; how many victims have been seen; one was another tenant's.
        last, seen, crossed = Tenant(""), 0, False

        def victims_of(key: str, preempt: Sequence[str]) -> list[str]:
            nonlocal last, seen, crossed
            # Accounts do not know yet of a preemption that was just chosen: one exchange between tenants a decision.
            crossed |= any(calls[victim].tenant != last for victim in preempt[seen:])
            rank, tenant = calls[key].rank, calls[key].tenant
            last, seen, others = tenant, len(preempt), not crossed
            ahead = {one for one in accounts.running_tenants if one != tenant and accounts.owes(one, tenant)}

            def is_worse(call: CallState) -> bool:
                if call.tenant == tenant:
                    return policy.max_preemptions > 0 and call.rank > rank
                return others and call.tenant in ahead and now_us - call.started_us >= QUANTUM_US

            return [victim for victim in self._victims(is_worse, room, now_us) if victim not in preempt]

        return victims_of

    def _victims(self, is_worse: Callable[[CallState], bool], room: Room, now_us: int) -> list[str]:
        """Running calls that may be preempted, worst last."""
        affordable_us = self.budget.affordable_us(now_us, len(self._running))
        victims = [
            key
            for key, call in self._running.items()
            if is_worse(call)
            and (call.preemptions == 0 or call.service_us - call.started_service_us >= PROTECTED_SERVICE_US)
            and room.preemptable(key)
            and room.resume_us(key) <= affordable_us
        ]
        return sorted(victims, key=self._rank)
