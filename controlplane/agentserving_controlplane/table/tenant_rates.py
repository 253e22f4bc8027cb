"""Calls and tokens a minute of each tenant that has such bounds, and what is left of them and of its day. Pure.

A call counts when it is admitted, its tokens (prompt and answer, as engines report them) when it ends: the calls that
are in flight when a bound of tokens is reached pass it, and are paid off afterwards. A new leader starts with full
buckets.
"""

from __future__ import annotations

import math
from typing import Protocol

from agentserving.contract.ids import Tenant
from agentserving.contract.rates import REQUESTS, TOKENS, Bucket, Rate

from agentserving_controlplane.errors import OverloadedError
from agentserving_controlplane.instant import Instant


class MinuteBounds(Protocol):
    """Bounds of one tenant; 0 = none."""

    @property
    def calls_per_minute(self) -> int: ...
    @property
    def tokens_per_minute(self) -> int: ...


class TenantRates:
    """The buckets of tenants with bounds. Those of tenants whose bounds were removed are forgotten when next seen."""

    def __init__(self) -> None:
        self._of: dict[Tenant, dict[str, Bucket]] = {}

    def check(self, tenant: Tenant, bounds: MinuteBounds, now: Instant) -> None:
        """OverloadedError when a tenant may not have one more call now."""
        now_s = now.steady_us / 1e6
        waits = {unit: bucket.wait_s(1.0, now_s) for unit, bucket in self._buckets(tenant, bounds, now_s).items()}
        unit = max(waits, key=waits.__getitem__, default="")
        if not unit or not waits[unit]:
            return
        what = "calls" if unit == REQUESTS else "tokens of prompts and answers"
        wait_s = waits[unit]
        raise OverloadedError(
            "RATE_LIMITED",
            f"this tenant may use {self._of[tenant][unit].per_minute} {what} a minute: try again in"
            f" {math.ceil(wait_s)} s",
            retry_after_s=wait_s,
            rates=self.left(tenant, now),
        )

    def admitted(self, tenant: Tenant, now: Instant) -> None:
        """Counts a call."""
        self._take(tenant, REQUESTS, 1, now)

    def used(self, tenant: Tenant, tokens: int, now: Instant) -> None:
        """Counts the tokens of a call that has ended."""
        self._take(tenant, TOKENS, tokens, now)

    def left(self, tenant: Tenant, now: Instant) -> tuple[Rate, ...]:
        """What is left of a tenant's bounds."""
        if tenant not in self._of:
            return ()
        return tuple(bucket.rate(unit, now.steady_us / 1e6) for unit, bucket in self._of[tenant].items())

    def _take(self, tenant: Tenant, unit: str, amount: int, now: Instant) -> None:
        bucket = self._of[tenant].get(unit) if tenant in self._of else None
        if bucket is not None:
            bucket.take(amount, now.steady_us / 1e6)

    def _buckets(self, tenant: Tenant, bounds: MinuteBounds, now_s: float) -> dict[str, Bucket]:
        """Made and replaced as the tenant's bounds are."""
        wanted = {REQUESTS: bounds.calls_per_minute, TOKENS: bounds.tokens_per_minute}
        if not (bounds.calls_per_minute or bounds.tokens_per_minute):
            self._of.pop(tenant, None)
            return {}
        buckets = self._of.setdefault(tenant, {})
        for unit, per_minute in wanted.items():
            bucket = buckets.get(unit)
            if not per_minute:
                buckets.pop(unit, None)
            elif bucket is None or bucket.per_minute != per_minute:
                buckets[unit] = Bucket(per_minute, now_s)
        return buckets
