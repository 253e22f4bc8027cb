"""Injected faults: late answers, refusals, streams that are cut. Pure.

A fault is spelled `latency=SECONDS`, `STATUS` or `STATUS=RETRY_AFTER_S` (400 to 599), or `cut` or `cut=TOKENS`: the
connection is closed after so many tokens of a stream, or instead of an answer. `@SHARE` behind it is the share of
requests that it hits. Several are separated by commas. They come from the flag `--fault`, and for a single request
from its header or behind its model's name (`tiny+429@0.5`), which take the flag's place.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

HEADER = "x-agentserving-fault"
# Between a model's name and faults.
SUFFIX = "+"
DEFAULT_RETRY_AFTER_S = 1.0
MAX_LATENCY_S = 3600.0
_SPELLING = re.compile(r"(latency|cut|[45]\d\d)(?:=(\d+(?:\.\d+)?))?(?:@(\d*\.?\d+))?")


class InvalidFaultError(ValueError):
    """The text is no list of faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`kind`: "latency", "cut" or a status; `amount` is the number behind it, NaN if there is none."""

    kind: str
    amount: float
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What happens to one request. `status` 0: it is served; `cut_after`: tokens of a stream, None = not cut."""

    latency_s: float = 0.0
    status: int = 0
    retry_after_s: float = DEFAULT_RETRY_AFTER_S
    cut_after: int | None = None


NO_FAULT = Hit()


def read_faults(text: str) -> tuple[Fault, ...]:
    """Raises InvalidFaultError."""
    return tuple(_fault(each.strip()) for each in text.split(",") if each.strip())


def _fault(text: str) -> Fault:
    found = _SPELLING.fullmatch(text)
    if found is None:
        raise InvalidFaultError(
            f"{text!r} is no fault: write latency=SECONDS, a status from 400 to 599 (=RETRY_AFTER_S), or cut=TOKENS, "
            "each with @SHARE if not all requests are to be hit"
        )
    kind, amount = found[1], float(found[2]) if found[2] else math.nan
    share = float(found[3]) if found[3] else 1.0
    if share > 1:
        raise InvalidFaultError(f"{text!r}: a share is at most 1")
    if kind == "latency" and not 0 <= amount <= MAX_LATENCY_S:
        raise InvalidFaultError(f"{text!r}: a latency is from 0 to {MAX_LATENCY_S:.0f} seconds")
    return Fault(kind=kind, amount=amount, share=share)


def draw(faults: Sequence[Fault], seed: int, request: int) -> Hit:
    """What hits request number `request`: the same numbers, the same faults. Of several refusals the first counts."""
    latency_s, status, retry_after_s, cut_after = 0.0, 0, DEFAULT_RETRY_AFTER_S, None
    for index, fault in enumerate(faults):
        if _uniform(seed, request, index) >= fault.share:
            continue
        amount = None if math.isnan(fault.amount) else fault.amount
        if fault.kind == "latency":
            latency_s += fault.amount
        elif fault.kind == "cut":
            cut_after = int(amount or 0)
        elif not status:
            status, retry_after_s = int(fault.kind), DEFAULT_RETRY_AFTER_S if amount is None else amount
    return Hit(latency_s=latency_s, status=status, retry_after_s=retry_after_s, cut_after=cut_after)


def split_model(requested: object, served: str) -> tuple[object, str]:
    """A model's name and the faults behind it, "" for none."""
    if isinstance(requested, str) and requested.startswith(served + SUFFIX):
        return served, requested.removeprefix(served + SUFFIX)
    return requested, ""


def _uniform(seed: int, request: int, index: int) -> float:
    digest = hashlib.blake2b(f"{seed} {request} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
