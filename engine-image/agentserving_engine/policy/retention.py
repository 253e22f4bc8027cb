"""KV of a program stays in the engine while its tool works, as long as computing it again would cost more. Pure.

Between two calls of a program nobody holds its context: the next call that wants blocks evicts it, and when the tool
has answered all of it is computed again. With contexts of a hundred thousand tokens an engine then does little else,
however its calls are ordered: what was evicted for one program is evicted for the next (thrashing; Denning's remedy, to
run only programs whose working sets fit, is the one here). So a context that was left is *kept* for a time against
calls of worse programs: one of them starts only where it fits beside what is kept. Nothing is pinned, a kept block is
a free one: running calls and better programs take it when they need it, and the time is short: `retention_milli` times
what computing it again would take (rent or buy: at worst so many times the cost of having dropped it at once).

Whether programs of a class come back within that time is learned, and where few do nothing of theirs is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

# A program among programs: (rank of its level, its arrival); lower goes first.
Place = tuple[int, int]

# Waiting calls that do not fit beside what is kept, looked past in one step: its cost must not grow with the queue.
MAX_PASSED_OVER = 64
# Contexts kept of one program: sub-agents have their own.
MAX_CONTEXTS = 8
# A context of which a newer one has all but this share is that one's past.
NEW_SHARE = 0.1
# Weight of the newest outcome in a class's share of returns in time; below the least nothing of it is kept.
SMOOTHING, LEAST_RETURNS = 0.05, 0.5
MAX_CLASSES = 64


class Memory(Protocol):
    """The engine's KV cache, asked about contexts: sequences of units (blocks, or stretches of them), root first."""

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Leading units that both have."""

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks of the units from `first` on that are cached and that nobody holds."""

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Makes those the last ones to be evicted."""


@dataclass(slots=True)
class _Kept:
    context: Sequence[object]
    place: Place
    until_us: int
    # Leading units that a newer context of the program has, too.
    first: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a waiting call would take: blocks beyond those it finds, and of those it finds the ones nobody holds."""

    program: str
    place: Place
    new_blocks: int
    idle_blocks: int = 0


class Retention:
    """Contexts of programs that have no call here, or none that goes on with them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._kept: dict[str, list[_Kept]] = {}
        # Programs that are away: class, and until when a return is in time.
        self._away: dict[str, tuple[str, int]] = {}
        self._returns: OrderedDict[str, float] = OrderedDict()
        self._fresh_at = 0
        # As of the last walk: blocks kept, and calls passed over.
        self.kept_blocks = self.passed_over = 0
        # No waiting call could start with so many free blocks, until then or until somebody comes or goes.
        self._none: tuple[int, int] | None = None

    @property
    def empty(self) -> bool:
        """Nothing is kept."""
        return not self._kept

    def left(
        self, program: str, application: str, place: Place, context: Sequence[object], keep_us: float, now_us: int
    ) -> None:
        """A call of the program has ended with this context, worth keeping for `keep_us`."""
        self._none = None
        if keep_us <= 0 or not context:
            return
        until_us = now_us + int(keep_us)
        self._away[program] = (application, until_us)
        if self._returns.get(application, 1.0) < LEAST_RETURNS:
            return
        older = []
        for kept in self._kept.get(program, ()):
            kept.first = max(kept.first, self._memory.common(kept.context, context))
            if len(kept.context) - kept.first > NEW_SHARE * len(kept.context):
                older.append(kept)
        self._kept[program] = [*older[1 - MAX_CONTEXTS :], _Kept(context, place, until_us)]

    def back(self, program: str, now_us: int) -> None:
        """A call of the program has arrived."""
        self._none = None
        away = self._away.pop(program, None)
        if away is not None:
            self._learn(away[0], now_us < away[1])

    def clear(self) -> None:
        """Another policy: nothing is kept any more."""
        self._kept.clear()
        self._away.clear()
        self._none = None
        self.kept_blocks = self.passed_over = 0

    def _learn(self, application: str, in_time: bool) -> None:
        known = self._returns.get(application, 1.0)
        self._returns[application] = known + SMOOTHING * (in_time - known)
        self._returns.move_to_end(application)
        if len(self._returns) > MAX_CLASSES:
            self._returns.popitem(last=False)

    def _expire(self, now_us: int) -> None:
        for program, (application, until_us) in list(self._away.items()):
            if until_us <= now_us:
                del self._away[program]
                self._learn(application, False)
        for program, contexts in list(self._kept.items()):
            left = [kept for kept in contexts if kept.until_us > now_us]
            if left:
                self._kept[program] = left
            else:
                del self._kept[program]

    def next_end_us(self) -> int | None:
        """When the first of the kept contexts is kept no more."""
        return min((kept.until_us for contexts in self._kept.values() for kept in contexts), default=None)

    def may_start(
        self, waiting: Iterable[str], now_us: int, *, slots: int, free_blocks: int, wanted: Callable[[str], Wanted]
    ) -> list[str] | None:
        """The waiting calls, best first, that may start now; None when all may.

        `waiting` best first, `slots` and `free_blocks` as the engine has them left. A call is passed over that fits
        into the free blocks only where those of a better program are kept, and does not end the walk: the next one may
        have its context here.
        """
        if self._none is not None and free_blocks <= self._none[0] and now_us < self._none[1]:
            return []
        self._expire(now_us)
        self.kept_blocks = self.passed_over = 0
        if not self._kept:
            return None
        sizes = [
            (kept.place, program, self._memory.idle(kept.context, kept.first))
            for program, contexts in self._kept.items()
            for kept in contexts
        ]
        self.kept_blocks = sum(size for _, _, size in sizes)
        able: list[str] = []
        for key in waiting:
            call = wanted(key)
            free = free_blocks - call.idle_blocks
            kept = sum(size for place, of, size in sizes if place < call.place and of != call.program)
            if call.new_blocks <= free - kept or call.new_blocks > free:
                able.append(key)
                slots -= 1
                free_blocks = free - call.new_blocks
                if slots <= 0 or free_blocks < 0:
                    break
                continue
            self.passed_over += 1
            if self.passed_over == MAX_PASSED_OVER:
                break
        end_us = self.next_end_us()
        self._none = (free_blocks, end_us) if self.passed_over and not able and end_us is not None else None
        return able if self.passed_over else None

    def refresh(self, taken_blocks: int, free_blocks: int) -> bool:
        """Moves what is kept out of the way of evictions, when enough was taken since the last time to reach it.

        `taken_blocks` counts all that were ever taken from the free ones, which go oldest first: what was refreshed
        stands behind all others. Half of these, so that what they are said to be may be a little wrong.
        """
        contexts = [kept for contexts in self._kept.values() for kept in contexts]
        if not contexts or taken_blocks - self._fresh_at < free_blocks // 64:
            return False
        kept_blocks = sum(self._memory.idle(kept.context, kept.first) for kept in contexts)
        if taken_blocks - self._fresh_at < (free_blocks - kept_blocks) // 2:
            return False
        self._fresh_at = taken_blocks
        for kept in sorted(contexts, key=lambda kept: kept.place, reverse=True):
            self._memory.refresh(kept.context, kept.first)
        return True
