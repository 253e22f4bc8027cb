"""How often a key may be used, and the headers that tell its client so. Pure: time is an argument.

Each gateway counts for itself: behind n of them a key has up to n times its bound. The bounds of a tenant are the
leader's, which sends what is left of them with each admission and refusal.
"""

from __future__ import annotations

import datetime
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from agentserving.contract.rates import INPUT_TOKENS, REQUESTS, TOKENS, Bucket, Rate

from agentserving_gateway.errors import HttpError, is_anthropic

# Keys whose buckets are remembered; a cluster has at most 10,000. The one that is unused for longest is forgotten.
MAX_KEYS = 20_000


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

    def take(self, key_id: str, limits: Limits, prompt_tokens: int, now_s: float) -> tuple[Rate, ...]:
        """Counts one request; gives what is left. HttpError 429 when it is too many."""
        if limits == UNLIMITED:
            return ()
        buckets = self._buckets(key_id, limits, now_s)
        wanted = {REQUESTS: 1.0, INPUT_TOKENS: float(prompt_tokens)}
        waits = {unit: bucket.wait_s(wanted[unit], now_s) for unit, bucket in buckets.items()}
        unit = max(waits, key=waits.__getitem__)
        if waits[unit] > 0:
            raise self._refused(unit, buckets[unit], waits[unit], _left(buckets, now_s))
        for name, bucket in buckets.items():
            bucket.take(wanted[name], now_s)
        return _left(buckets, now_s)

    def give_back(self, key_id: str, prompt_tokens: int, now_s: float) -> None:
        """The request is asked about again, and counted then."""
        _, buckets = self._keys.get(key_id, (UNLIMITED, {}))
        for name, bucket in buckets.items():
            bucket.take(-1.0 if name == REQUESTS else -float(prompt_tokens), now_s)

    def _buckets(self, key_id: str, limits: Limits, now_s: float) -> dict[str, Bucket]:
        known, buckets = self._keys.get(key_id, (None, {}))
        if known != limits:
            units = {REQUESTS: limits.calls_per_minute, INPUT_TOKENS: limits.prompt_tokens_per_minute}
            buckets = {unit: Bucket(bound, now_s) for unit, bound in units.items() if bound}
            self._keys[key_id] = limits, buckets
            if len(self._keys) > MAX_KEYS:
                self._keys.popitem(last=False)
        self._keys.move_to_end(key_id)
        return buckets

    @staticmethod
    def _refused(unit: str, bucket: Bucket, wait_s: float, rates: tuple[Rate, ...]) -> HttpError:
        what = "requests" if unit == REQUESTS else "prompt tokens"
        return HttpError(
            429,
            f"this API key may use {bucket.per_minute} {what} a minute: try again in {math.ceil(wait_s)} s",
            "rate_limit_error",
            "rate_limit_exceeded",
            retry_after_s=wait_s,
            rates=rates,
        )


def _left(buckets: dict[str, Bucket], now_s: float) -> tuple[Rate, ...]:
    return tuple(bucket.rate(unit, now_s) for unit, bucket in buckets.items())


def headers(rates: Iterable[Rate], path: str, now_unix_s: float) -> dict[str, str]:
    """Of an answer: OpenAI's x-ratelimit-..., or Anthropic's anthropic-ratelimit-... on /v1/messages.

    Several bounds of one name are shown by the one of which least is left. OpenAI has one name for all tokens.
    """
    anthropic = is_anthropic(path)
    tightest: dict[str, Rate] = {}
    for rate in rates:
        name = TOKENS if rate.unit == INPUT_TOKENS and not anthropic else rate.unit
        if name not in tightest or rate.remaining < tightest[name].remaining:
            tightest[name] = rate
    found = {}
    for name, rate in tightest.items():
        prefix, suffix = (f"anthropic-ratelimit-{name}-", "") if anthropic else ("x-ratelimit-", f"-{name}")
        found[f"{prefix}limit{suffix}"] = str(rate.limit)
        found[f"{prefix}remaining{suffix}"] = str(rate.remaining)
        found[f"{prefix}reset{suffix}"] = _rfc_3339(now_unix_s + rate.reset_s) if anthropic else f"{rate.reset_s:.3f}s"
    return found


def _rfc_3339(unix_s: float) -> str:
    """In whole seconds, rounded up: by then it is so."""
    return datetime.datetime.fromtimestamp(math.ceil(unix_s), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
