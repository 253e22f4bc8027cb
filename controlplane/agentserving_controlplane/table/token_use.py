"""Tokens that each tenant has used today (UTC): prompts and answers, as engines report them. Pure.

A call counts when it ends, so a bound is passed by the calls that are in flight when it is reached. The count is
written behind the rows of its calls, and a crash may lose, or count twice, what ended in the last 50 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from agentserving.contract.ids import Tenant
from agentserving.contract.rates import TOKENS, Rate

from agentserving_controlplane.errors import OverloadedError
from agentserving_controlplane.instant import Instant

TOKENS_PREFIX = "tokens/"
DAY_US = 24 * 3600 * 1_000_000


@dataclass(slots=True)
class _Use:
    day: int
    tokens: int


_decoder = msgspec.msgpack.Decoder(tuple[int, int])


class TokenUse:
    """Tokens of the current day (UTC) by tenant, as stored under TOKENS_PREFIX."""

    def __init__(self) -> None:
        self._of: dict[Tenant, _Use] = {}
        self._changed: dict[Tenant, None] = {}

    def add(self, tenant: Tenant, tokens: int, now: Instant) -> None:
        """A call has ended."""
        day, use = now.unix_us // DAY_US, self._of.get(tenant)
        if use is None or use.day < day:
            self._of[tenant] = _Use(day, tokens)
        else:
            use.tokens += tokens
        self._changed[tenant] = None

    def today(self, tenant: Tenant, now: Instant) -> int:
        """Tokens that a tenant has used since midnight."""
        use = self._of.get(tenant)
        return use.tokens if use is not None and use.day >= now.unix_us // DAY_US else 0

    def check(self, tenant: Tenant, bound: int, now: Instant) -> None:
        """OverloadedError when a tenant has used as many tokens as it may; 0 = any number."""
        if bound and (used := self.today(tenant, now)) >= bound:
            raise OverloadedError(
                "TOKENS_USED_UP",
                f"this tenant has used {used} tokens today, of at most {bound}: it may go on after midnight UTC",
                retry_after_s=_until_midnight_s(now),
                rates=(self.left(tenant, bound, now),),
            )

    def left(self, tenant: Tenant, bound: int, now: Instant) -> Rate:
        """What is left of a tenant's bound for this day."""
        return Rate(TOKENS, bound, max(0, bound - self.today(tenant, now)), _until_midnight_s(now))

    def take_changed(self) -> list[Tenant]:
        """Tenants whose use has changed since the last time, in the order of their changes."""
        changed, self._changed = list(self._changed), {}
        return changed

    def take_past(self, now: Instant) -> list[Tenant]:
        """Forgets what was used on earlier days; returns whose."""
        past = [tenant for tenant, use in self._of.items() if use.day < now.unix_us // DAY_US]
        for tenant in past:
            del self._of[tenant]
        return past

    def encode(self, tenant: Tenant) -> bytes | None:
        """A tenant's use for the store; None deletes it."""
        use = self._of.get(tenant)
        return msgspec.msgpack.encode((use.day, use.tokens)) if use is not None else None

    def restore(self, store_key: str, data: bytes) -> None:
        """Inverse of `encode`. ValueError."""
        self._of[Tenant(store_key.removeprefix(TOKENS_PREFIX))] = _Use(*_decoder.decode(data))


def _until_midnight_s(now: Instant) -> float:
    return (DAY_US - now.unix_us % DAY_US) / 1e6
