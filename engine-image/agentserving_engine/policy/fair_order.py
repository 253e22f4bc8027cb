"""The waiting calls of several tenants: tenants by their accounts, and the calls of each by the policy. Pure.

Has the methods of the `LazyHeap` that a `CallQueue` uses while there is one tenant. Ranks inside a tenant do not
depend on other tenants, so no call moves when virtual times do.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator

from agentserving.contract.ids import Tenant

from agentserving_engine.policy.lazy_heap import LazyHeap
from agentserving_engine.policy.tenant_accounts import TenantAccounts, Usage

Rank = tuple[float, ...]


class FairOrder:
    """Waiting keys; `rank_of` is the rank of a key in its tenant, which decides between tenants only when they tie."""

    def __init__(
        self,
        accounts: TenantAccounts,
        tenant_of: Callable[[str], Tenant],
        rank_of: Callable[[str], Rank],
        changes: int = 0,
    ) -> None:
        self.accounts = accounts
        self._tenant_of, self._rank_of = tenant_of, rank_of
        self._heaps: dict[Tenant, LazyHeap[Rank]] = {}
        # Tenant of each key.
        self._live: dict[str, Tenant] = {}
        self._changes = changes
        self._running_order: list[Tenant] = []

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: object) -> bool:
        return key in self._live

    @property
    def changes(self) -> int:
        """Grows whenever the order may have changed."""
        return self._changes

    @property
    def tenants(self) -> list[Tenant]:
        """Tenants with waiting calls."""
        return list(self._heaps)

    # -- events --------------------------------------------------------------------------------------------------

    def take_over(self, waiting: Iterable[str], running: Iterable[Tenant]) -> None:
        """Begins with these waiting calls, and the tenants of those that run."""
        self._changes += 1
        for tenant in running:
            self.started(tenant)
        for key in waiting:
            self.push(key, self._rank_of(key))

    def push(self, key: str, priority: Rank) -> None:
        """Adds a key, or moves it among its tenant's; O(log n), and O(tenants) for the first key of a tenant."""
        self._changes += 1
        tenant = self._live.get(key)
        if tenant is None:
            tenant = self._live[key] = self._tenant_of(key)
            if tenant not in self._heaps:
                self.accounts.waits(tenant, self._heaps)
                self._heaps[tenant] = LazyHeap()
                self.accounts.forget_absent(self._heaps)
        self._heaps[tenant].push(key, priority)

    def discard(self, key: str) -> None:
        """Removes a key if it is there; amortised O(1)."""
        tenant = self._live.pop(key, None)
        if tenant is None:
            return
        self._changes += 1
        heap = self._heaps[tenant]
        heap.discard(key)
        if not heap:
            del self._heaps[tenant]

    def started(self, tenant: Tenant) -> None:
        """A call runs from now on."""
        self._changes += 1
        self.accounts.started(tenant)

    def stopped(self, tenant: Tenant) -> None:
        """A call runs no longer."""
        self._changes += 1
        self.accounts.stopped(tenant)

    def charge(self, dt_us: float, usage: Usage | None) -> None:
        """Time passed in which calls ran."""
        self._changes += 1
        self.accounts.charge(dt_us, usage)

    def reorder_running(self) -> bool:
        """The running tenants are in another order than at the last call of this method."""
        before, accounts = self._running_order, self.accounts
        self._running_order = sorted(accounts.running_tenants, key=accounts.standing)
        return self._running_order != before

    # -- the order -----------------------------------------------------------------------------------------------

    def _place(self, tenant: Tenant, key: str, taken: int = 0) -> tuple[float, Rank]:
        return self.accounts.standing(tenant, taken), self._rank_of(key)

    def first(self) -> tuple[Rank, str] | None:
        """(priority, key) of the first key, which stays; O(tenants)."""
        found = [(tenant, head) for tenant, heap in self._heaps.items() if (head := heap.first()) is not None]
        return min(found, key=lambda each: self._place(each[0], each[1][1]))[1] if found else None

    def first_keys(self, count: int) -> list[str]:
        """The first `count` keys, or all if there are fewer."""
        with contextlib.closing(self._walk()) as keys:
            return list(itertools.islice(keys, count))

    def __iter__(self) -> Iterator[str]:
        """Keys as they would start one after another. Nothing may be pushed or discarded meanwhile."""
        return self._walk()

    def _walk(self) -> Generator[str, None, None]:
        with contextlib.ExitStack() as stack:
            walks = {
                tenant: stack.enter_context(contextlib.closing(heap.walk())) for tenant, heap in self._heaps.items()
            }
            heads: list[tuple[tuple[float, Rank], Tenant, int, str]] = []

            def advance(tenant: Tenant, taken: int) -> None:
                key = next(walks[tenant], None)
                if key is not None:
                    heapq.heappush(heads, (self._place(tenant, key, taken), tenant, taken, key))

            for tenant in walks:
                advance(tenant, 0)
            while heads:
                _, tenant, taken, key = heapq.heappop(heads)
                yield key
                advance(tenant, taken + 1)
