"""What a call does in its engine at a time, and what became of its prefix; numbers as in types.proto.

The engine measures both, the control plane adds what only it knows, and clients show them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Self


class _Wire(IntEnum):
    """A number of a newer version is UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return cls(0)


class PhaseKind(_Wire):
    """What a call does; types.proto describes each."""

    UNSPECIFIED = 0
    HELD = 1
    QUEUE = 2
    PREFILL = 3
    DECODE = 4
    PREEMPTED = 5


class PrefixMiss(_Wire):
    """Why the prefix cache did not have what it might have had; types.proto describes each."""

    UNSPECIFIED = 0
    NONE = 1
    FIRST = 2
    DIVERGED = 3
    ANSWER_CHANGED = 4
    EVICTED = 5
    OTHER_ENGINE = 6
    SALT = 7


# (kind, microseconds) in order. Plain numbers, because they are in every report of a call.
Phases = tuple[tuple[int, int], ...]


def placed(
    phases: Iterable[tuple[int, int]], *, admit_us: int, arrive_us: int, end_us: int
) -> list[tuple[int, int, int]]:
    """(kind, begin, end) of each phase on the clock that admitted the call and heard of its end, microseconds.

    `arrive_us`: when the engine received the call by its own wall clock, 0 = not known. Phases keep their lengths, and
    their begin is limited to where they fit: whatever the clocks say, they lie between the admission and the end.
    """
    phases = list(phases)
    length_us = min(sum(us for _, us in phases), max(0, end_us - admit_us))
    at_us = max(admit_us, min(arrive_us, end_us - length_us))
    spans = []
    for kind, us in phases:
        until_us = min(at_us + us, max(end_us, admit_us))
        spans.append((kind, at_us, until_us))
        at_us = until_us
    return spans
