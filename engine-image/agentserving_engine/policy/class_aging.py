"""Classes of service that have waited too long behind better ones of their tenant: one call of each goes first. Pure.

A better class goes first, so a worse one would starve while better calls keep coming. Its calls cannot be promoted one
by one by their waits, as a policy does inside a class: a flood of batch calls would soon all be promoted, and delay
those that it has to give way to. So the class ages as a whole: when some of its calls have waited for AGE_US without
any of the class ending, the first of them goes ahead of all classes until it ends. One at a time: a better class loses
at most one slot to each worse one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from agentserving.contract.ids import Tenant
from agentserving.contract.service_class import SERVICE_CLASSES, ServiceClass

from agentserving_engine.policy.state import CallFacts, CallState

# Batch is work that people fetch later; for standard calls they wait.
AGE_US = {ServiceClass.STANDARD: 15_000_000, ServiceClass.BATCH: 60_000_000}

_Aging = tuple[Tenant, ServiceClass]


class _Counts:
    """Calls of a tenant by the number of their class."""

    __slots__ = ("here", "waiting")

    def __init__(self) -> None:
        self.here, self.waiting = [0] * len(ServiceClass), [0] * len(ServiceClass)


class ClassAging:
    """The caller reports every event of every call. Calls without a ticket have no class: the policy ages them."""

    def __init__(self) -> None:
        self._counts: dict[Tenant, _Counts] = {}
        # Since when a class waits behind better ones and none of its calls has ended.
        self._since_us: dict[_Aging, int] = {}
        # The call of a class that goes first.
        self._aged: dict[_Aging, str] = {}
        # When a class has waited for long enough; infinite when none waits.
        self.due_us: float = math.inf

    def arrived(self, facts: CallFacts, now_us: int) -> None:
        """A call joins the waiting ones."""
        if facts.managed:
            counts = self._counts.setdefault(facts.program.tenant, _Counts())
            counts.here[facts.service_class] += 1
            counts.waiting[facts.service_class] += 1
            self._watch(facts.program.tenant, counts, now_us)

    def started(self, facts: CallFacts, now_us: int) -> None:
        """A waiting call runs."""
        self._waits(facts, -1, now_us)

    def preempted(self, facts: CallFacts, now_us: int) -> None:
        """A running call waits again."""
        self._waits(facts, 1, now_us)

    def _waits(self, facts: CallFacts, more: int, now_us: int) -> None:
        if facts.managed:
            counts = self._counts[facts.program.tenant]
            counts.waiting[facts.service_class] += more
            self._watch(facts.program.tenant, counts, now_us)

    def ended(self, facts: CallFacts, now_us: int, *, running: bool) -> None:
        """A call has left; `running`: it had a slot until now."""
        if not facts.managed:
            return
        tenant, kind = facts.program.tenant, facts.service_class
        counts = self._counts[tenant]
        counts.here[kind] -= 1
        counts.waiting[kind] -= not running
        aging = tenant, kind
        if self._aged.get(aging) == facts.key:
            del self._aged[aging]
        if running and aging in self._since_us:
            self._since_us[aging] = now_us
            self._find_due()
        self._watch(tenant, counts, now_us)
        if not any(counts.here):
            del self._counts[tenant]

    def _watch(self, tenant: Tenant, counts: _Counts, now_us: int) -> None:
        better, has_changed = counts.here[ServiceClass.INTERACTIVE], False
        for kind in SERVICE_CLASSES[1:]:
            aging, must_wait = (tenant, kind), bool(better and counts.waiting[kind])
            if must_wait != (aging in self._since_us):
                has_changed = True
                if must_wait:
                    self._since_us[aging] = now_us
                else:
                    del self._since_us[aging]
            better += counts.here[kind]
        if has_changed:
            self._find_due()

    def _find_due(self) -> None:
        self.due_us = min((since_us + AGE_US[each[1]] for each, since_us in self._since_us.items()), default=math.inf)

    def take_due(self, order: Collection[str], calls: Mapping[str, CallState], now_us: int) -> list[str]:
        """The calls that go first from now on, one of each class that has waited for long enough; marks them as aged.

        `order`: calls that may start, best first. O(calls that may start), once in AGE_US for each tenant and class.
        """
        due = {each for each, since_us in self._since_us.items() if since_us + AGE_US[each[1]] <= now_us}
        for aging in due:
            # Again in AGE_US: the call that goes first may be paused by then.
            self._since_us[aging] = now_us
        self._find_due()
        chosen: list[str] = []
        wanted = {each for each in due if not self._goes_on(each, order, calls)}
        for key in order if wanted else ():
            facts = calls[key].facts
            aging = facts.program.tenant, facts.service_class
            if facts.managed and aging in wanted:
                wanted.remove(aging)
                self._aged[aging] = key
                calls[key].aged = True
                chosen.append(key)
                if not wanted:
                    break
        return chosen

    def _goes_on(self, aging: _Aging, order: Collection[str], calls: Mapping[str, CallState]) -> bool:
        """The call of the class that goes first runs, or may start; one that is paused by now goes first no longer."""
        key = self._aged.get(aging)
        if key is None or calls[key].running or key in order:
            return key is not None
        del self._aged[aging]
        calls[key].aged = False
        return False
