"""How much of the table a tenant may use, and all tenants together. Pure.

What is over a bound is refused before it changes anything; everybody else is served. Retained rows of closed programs
are not refused: beyond their bound the oldest are forgotten early (`ClosedPrograms`).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from agentserving.contract.ids import ProgramKey, Tenant

from agentserving_controlplane.errors import OverloadedError

# Times to retry, seconds: calls end in seconds, programs in minutes.
RETRY_CALLS_S, RETRY_PROGRAMS_S = 1.0, 5.0
# Share of the capacity beyond which no tenant gets more than an equal part.
AMPLE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Of one control plane. A live program takes 2.4 kB of memory (docs/scale.md), a closed one less."""

    programs: int = 200_000
    closed_programs: int = 200_000
    # Engines get all paused programs in one message of at most 8 MiB; one takes 260 bytes at most.
    paused_programs: int = 10_000
    # Of each tenant, whatever its own bounds are.
    tenant_programs: int = 100_000
    tenant_paused_programs: int = 2_000
    # Of a tenant that nothing else was said about.
    default_tenant_programs: int = 100_000
    default_tenant_calls: int = 0


DEFAULT_CAPACITY = Capacity()


class TenantBounds(Protocol):
    """Bounds of one tenant; 0 = none."""

    @property
    def max_programs(self) -> int: ...
    @property
    def max_calls(self) -> int: ...
    @property
    def calls_per_minute(self) -> int: ...
    @property
    def tokens_per_minute(self) -> int: ...
    @property
    def tokens_per_day(self) -> int: ...


class _Unbounded(NamedTuple):
    max_programs: int = 0
    max_calls: int = 0
    calls_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0


_UNBOUNDED = _Unbounded()


def unbounded(tenant: Tenant) -> TenantBounds:
    """Of tenants that nothing has been said about."""
    return _UNBOUNDED


class Tally:
    """Counts by tenant. Tenants at zero are not in it."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[Tenant, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def of(self, tenant: Tenant) -> int:
        """The count of one tenant."""
        return self._counts.get(tenant, 0)

    def add(self, tenant: Tenant, more: int) -> None:
        """Adds to a tenant's count; `more` may be negative."""
        self.total += more
        count = self._counts[tenant] = self._counts.get(tenant, 0) + more
        if not count:
            del self._counts[tenant]


class ClosedPrograms:
    """Closed programs, those that closed first first; cancelled ones, which must not come back by accident, last."""

    def __init__(self) -> None:
        self._ended: OrderedDict[ProgramKey, None] = OrderedDict()
        self._cancelled: OrderedDict[ProgramKey, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ended) + len(self._cancelled)

    def add(self, key: ProgramKey, *, cancelled: bool) -> None:
        """A program has closed, or a closed one was cancelled."""
        self.discard(key)
        (self._cancelled if cancelled else self._ended)[key] = None

    def discard(self, key: ProgramKey) -> None:
        """A program is closed no longer, or gone."""
        self._ended.pop(key, None)
        self._cancelled.pop(key, None)

    def oldest(self, at_most: int) -> list[ProgramKey]:
        """The first to be forgotten."""
        return list(itertools.islice(itertools.chain(self._ended, self._cancelled), max(0, at_most)))


class Use(Protocol):
    """What is counted; of the index."""

    live: Tally
    calls_of: Tally
    paused_of: Tally


class Bounds:
    """Refuses what is too much."""

    def __init__(self, use: Use, capacity: Capacity, late: Tally) -> None:
        self.capacity = capacity
        self._use, self._late = use, late
        # What each tenant is entitled to; the leader sets it.
        self.of_tenant: Callable[[Tenant], TenantBounds] = unbounded

    def check_programs(self, tenant: Tenant, more: int = 1) -> None:
        """OverloadedError when a tenant may not have `more` live programs."""
        capacity, live = self.capacity, self._use.live
        count = live.of(tenant) + more
        own = self.of_tenant(tenant).max_programs or capacity.default_tenant_programs
        bound = min(own, capacity.tenant_programs)
        if count > bound:
            self._refuse_programs(f"this tenant has {live.of(tenant)} live programs, of at most {bound}")
        if live.total + more > capacity.programs:
            self._refuse_programs(f"{live.total} programs are live, of at most {capacity.programs}")
        tenants = len(live) + (not live.of(tenant))
        if live.total + more > AMPLE * capacity.programs and count > capacity.programs / tenants:
            share = int(capacity.programs / tenants)
            self._refuse_programs(
                f"{live.total} programs are live, of at most {capacity.programs}, and {live.of(tenant)} are of this"
                f" tenant, whose part is {share}"
            )

    @staticmethod
    def _refuse_programs(what: str) -> None:
        raise OverloadedError(
            "TOO_MANY_PROGRAMS", f"{what}: close programs that have ended", retry_after_s=RETRY_PROGRAMS_S
        )

    def check_call(self, tenant: Tenant, replaced: int) -> None:
        """OverloadedError when a tenant may not have one more call in flight; `replaced` calls end with it."""
        bound = self.of_tenant(tenant).max_calls or self.capacity.default_tenant_calls
        if not bound:
            return
        count = self._use.calls_of.of(tenant) + self._late.of(tenant)
        if count - replaced >= bound:
            raise OverloadedError(
                "TOO_MANY_CALLS",
                f"this tenant has {count} calls in flight, of at most {bound}: wait until some have ended",
                retry_after_s=RETRY_CALLS_S,
            )

    def check_pause(self, tenant: Tenant) -> None:
        """OverloadedError when a tenant may not pause one more program."""
        for count, bound, whose in (
            (self._use.paused_of.of(tenant), self.capacity.tenant_paused_programs, "of this tenant "),
            (self._use.paused_of.total, self.capacity.paused_programs, ""),
        ):
            if count >= bound:
                raise OverloadedError(
                    "TOO_MANY_PAUSED",
                    f"{count} programs {whose}are paused, of at most {bound}: resume or close some",
                    retry_after_s=RETRY_PROGRAMS_S,
                )
