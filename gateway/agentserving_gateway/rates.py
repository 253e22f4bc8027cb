"""How often a key may be used: token buckets for calls and for prompt tokens a minute. Pure: time is an argument.

A bucket holds a minute's worth and fills steadily, so bursts up to the bound are admitted. A request that is
larger than a whole bucket passes when the bucket is full, and is paid off afterwards: it would else never pass. Each
gateway counts for itself: behind n of them a key has up to n times its bound.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from agentserving_gateway.errors import HttpError

# Keys whose buckets are remembered; a cluster has at most 10,000. The one that is unused for longest is forgotten.
MAX_KEYS = 20_000


class Bucket:
    """`per_minute` units at most in the bucket, and as many a minute flow in. Full at first."""

    __slots__ = ("_at_s", "_level", "per_minute")

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = float(per_minute), now_s

    def level(self, now_s: float) -> float:
        """What is in it; negative after a large request."""
        filled = max(0.0, now_s - self._at_s) * self.per_minute / 60
        return min(float(self.per_minute), self._level + filled)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until an amount may be taken; 0 = now."""
        missing = min(amount, self.per_minute) - self.level(now_s)
        return max(0.0, missing * 60 / self.per_minute)

    def take(self, amount: float, now_s: float) -> None:
        """Takes an amount; a negative one gives back."""
        self._level, self._at_s = min(float(self.per_minute), self.level(now_s) - amount), max(now_s, self._at_s)

    def full_in_s(self, now_s: float) -> float:
        """Seconds until it is full."""
        return (self.per_minute - self.level(now_s)) * 60 / self.per_minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one key; 0 = unbounded. Prompt tokens are estimated: a token for four bytes of the body."""

    calls_per_minute: int = 0
    prompt_tokens_per_minute: int = 0


UNLIMITED = Limits()


class Rates:
    """The buckets of all keys. One per process, owned by its event loop."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, tuple[Limits, dict[str, Bucket]]] = OrderedDict()

    def take(self, key_id: str, limits: Limits, prompt_tokens: int, now_s: float) -> dict[str, str]:
        """Counts one request; gives OpenAI's x-ratelimit headers for its answer. HttpError 429 when it is too many."""
        if limits == UNLIMITED:
            return {}
        buckets = self._buckets(key_id, limits, now_s)
        wanted = {"requests": 1.0, "tokens": float(prompt_tokens)}
        waits = {unit: bucket.wait_s(wanted[unit], now_s) for unit, bucket in buckets.items()}
        unit = max(waits, key=waits.__getitem__)
        if waits[unit] > 0:
            raise self._refused(unit, buckets[unit], waits[unit], _headers(buckets, now_s))
        for name, bucket in buckets.items():
            bucket.take(wanted[name], now_s)
        return _headers(buckets, now_s)

    def give_back(self, key_id: str, prompt_tokens: int, now_s: float) -> None:
        """The request is asked about again, and counted then."""
        _, buckets = self._keys.get(key_id, (UNLIMITED, {}))
        for name, bucket in buckets.items():
            bucket.take(-1.0 if name == "requests" else -float(prompt_tokens), now_s)

    def _buckets(self, key_id: str, limits: Limits, now_s: float) -> dict[str, Bucket]:
        known, buckets = self._keys.get(key_id, (None, {}))
        if known != limits:
            units = {"requests": limits.calls_per_minute, "tokens": limits.prompt_tokens_per_minute}
            buckets = {unit: Bucket(bound, now_s) for unit, bound in units.items() if bound}
            self._keys[key_id] = limits, buckets
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)
        self._keys.move_to_end(key_id)
        return buckets

    @staticmethod
    def _refused(unit: str, bucket: Bucket, wait_s: float, headers: dict[str, str]) -> HttpError:
        what = "requests" if unit == "requests" else "prompt tokens"
        return HttpError(
            429,
            f"this API key may use {bucket.per_minute} {what} a minute: try again in {math.ceil(wait_s)} s",
            "rate_limit_error",
            "rate_limit_exceeded",
            retry_after_s=wait_s,
            more_headers=headers,
        )


def _headers(buckets: dict[str, Bucket], now_s: float) -> dict[str, str]:
    found = {}
    for unit, bucket in buckets.items():
        found[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
        found[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level(now_s))))
        found[f"x-ratelimit-reset-{unit}"] = f"{bucket.full_in_s(now_s):.3f}s"
    return found
