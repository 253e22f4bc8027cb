"""Retains a program's KV in the engine during a tool wait, as long as recomputing it would cost more. Pure.

Between two calls of a program no request references its context: the next call that needs blocks evicts it, and after
the tool wait all of it is recomputed. With contexts of a hundred thousand tokens an engine then does little else,
whatever the order of its calls: what is evicted for one program is evicted for the next (thrashing; Denning's remedy,
used here, is to run only programs whose working sets fit). So the context of a call that ended is *retained* for a time
against calls of the tenant's lower-priority programs: such a call starts only if it fits without the retained blocks.
Nothing is pinned: a retained block is a free one, and running calls and better programs take it when they need it. The
time is short, `retention_milli` times the cost of recomputing the context (rent or buy: at worst that many times the
cost of having dropped it immediately).

Whether programs of a class return within that time is learned, and classes that rarely do are not retained. A client
that announces a tool wait longer than that time has its context dropped when the wait begins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec
from agentserving.contract.ids import ProgramKey

from agentserving_engine.policy.tenant_accounts import UNTICKETED
from agentserving_engine.policy.tool_waits import Origin, ToolWaits

# Position of a program among programs: (rank of its level, its arrival); lower goes first.
Place = tuple[int, int]

# Calls deferred in one step before the search stops: its cost must not grow with the queue.
MAX_PASSED_OVER = 64
# Contexts retained per program: sub-agents have contexts of their own.
MAX_CONTEXTS = 8
# A newer context that contains at least 90 % of an older one replaces it.
NEW_SHARE = 0.1
# Smoothing factor of a class's on-time return rate. Classes below LEAST_RETURNS are not retained.
SMOOTHING, LEAST_RETURNS = 0.05, 0.5
MAX_CLASSES = 64
# Programs that may be away before those whose time is over are looked for outside of `startable`.
MIN_SWEEP = 1024


class Memory(Protocol):
    """The engine's KV cache. A context is a sequence of units (blocks, or runs of blocks), root first."""

    def common(self, one: Sequence[object], other: Sequence[object]) -> int:
        """Number of leading units that the two share."""

    def idle(self, context: Sequence[object], first: int) -> int:
        """Blocks of the units from `first` on that are cached and referenced by no request."""

    def blocks_of(self, unit: object) -> int:
        """How many blocks of the cache a unit has."""

    def refresh(self, context: Sequence[object], first: int) -> None:
        """Makes those blocks the last ones to be evicted."""


class EndedContext(msgspec.Struct, frozen=True, kw_only=True):
    """The context that a call leaves behind, worth retaining for `worth_us`."""

    program: ProgramKey
    origin: Origin
    class_name: str
    place: Place
    context: Sequence[object]
    worth_us: float


class _Retained(msgspec.Struct, kw_only=True):
    context: Sequence[object]
    origin: Origin
    place: Place
    until_us: int
    # Leading units that a newer context of the program has as well.
    first: int = 0


class _Away(NamedTuple):
    class_name: str
    # A return before this is on time.
    until_us: int


class _Verdict(NamedTuple):
    """No waiting call can start: until the time, with more free blocks, or in another order of the waiting calls."""

    order: int
    free_blocks: int
    until_us: int


class Wanted(msgspec.Struct, frozen=True):
    """What a waiting call would take: new blocks, and of its cached blocks those that no request references."""

    program: ProgramKey
    place: Place
    new_blocks: int
    idle_blocks: int = 0


class Retention:
    """Contexts of programs between two calls."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._retained: dict[ProgramKey, list[_Retained]] = {}
        self._away: dict[ProgramKey, _Away] = {}
        self._waits = ToolWaits()
        self._return_rates: OrderedDict[str, float] = OrderedDict()
        self._refreshed_at = 0
        self._sweep_at = MIN_SWEEP
        # As of the last `startable`: blocks retained, and calls deferred because of them.
        self.kept_blocks = self.passed_over = 0
        self._verdict: _Verdict | None = None

    @property
    def empty(self) -> bool:
        """Nothing is retained."""
        return not self._retained

    def call_ended(self, ended: EndedContext, now_us: int) -> None:
        """A call has ended with this context."""
        self._verdict = None
        if ended.worth_us <= 0 or not ended.context:
            return
        until_us = now_us + int(ended.worth_us)
        if self._waits.expected_end_us(ended.program, ended.origin) > until_us:
            # The client has announced that the next call comes too late. That says nothing about its class.
            return
        self._away[ended.program] = _Away(ended.class_name, until_us)
        if len(self._away) >= self._sweep_at:
            self._expire(now_us)
            self._sweep_at = max(MIN_SWEEP, 2 * len(self._away))
        if self._return_rates.get(ended.class_name, 1.0) < LEAST_RETURNS:
            return
        older = []
        for retained in self._retained.get(ended.program, ()):
            retained.first = max(retained.first, self._memory.common(retained.context, ended.context))
            if len(retained.context) - retained.first > NEW_SHARE * len(retained.context):
                older.append(retained)
        newest = _Retained(context=ended.context, origin=ended.origin, place=ended.place, until_us=until_us)
        self._retained[ended.program] = [*older[1 - MAX_CONTEXTS :], newest]

    def call_arrived(self, program: ProgramKey, now_us: int) -> None:
        """Ends the wait for the program: its context is in use, or was lost."""
        self._verdict = None
        away = self._away.pop(program, None)
        if away is not None:
            self._learn(away.class_name, now_us < away.until_us)

    def tool_wait_began(self, root: ProgramKey, origin: Origin, expected_us: int, now_us: int) -> None:
        """A tool wait has begun; `expected_us` 0 = of unknown length, which changes nothing.

        A context that would not be retained until the expected end is dropped now: its blocks serve others meanwhile.
        """
        if expected_us <= 0:
            self._waits.end(root, origin)
            return
        ends_us = now_us + expected_us
        self._waits.begin(root, origin, ends_us)
        contexts = self._retained.get(root, [])
        left = [each for each in contexts if each.until_us >= ends_us or not _covers(origin, each.origin)]
        if len(left) == len(contexts):
            return
        self._verdict = None
        if left:
            self._retained[root] = left
        else:
            del self._retained[root]
            self._away.pop(root, None)

    def tool_wait_ended(self, root: ProgramKey, origin: Origin) -> None:
        """The tool wait is over: the next context is retained as usual."""
        self._waits.end(root, origin)

    def program_ended(self, program: ProgramKey) -> None:
        """Nobody comes back to the program's contexts."""
        self._verdict = None
        self._retained.pop(program, None)
        self._away.pop(program, None)

    def clear(self) -> None:
        """Drops everything: another policy is in force."""
        self._retained.clear()
        self._away.clear()
        self._verdict = None
        self.kept_blocks = self.passed_over = 0

    def _learn(self, class_name: str, on_time: bool) -> None:
        rate = self._return_rates.get(class_name, 1.0)
        self._return_rates[class_name] = rate + SMOOTHING * (on_time - rate)
        self._return_rates.move_to_end(class_name)
        if len(self._return_rates) > MAX_CLASSES:
            self._return_rates.popitem(last=False)

    def _expire(self, now_us: int) -> None:
        for program, away in list(self._away.items()):
            if away.until_us <= now_us:
                del self._away[program]
                self._learn(away.class_name, False)
        for program, contexts in list(self._retained.items()):
            left = [each for each in contexts if each.until_us > now_us]
            if left:
                self._retained[program] = left
            else:
                del self._retained[program]

    def next_end_us(self) -> int | None:
        """When the first retained context expires; None when nothing is retained."""
        return min((each.until_us for contexts in self._retained.values() for each in contexts), default=None)

    def startable(
        self,
        waiting: Iterable[str],
        now_us: int,
        *,
        slots: int,
        free_blocks: int,
        wanted: Callable[[str], Wanted],
        order: int | None,
    ) -> list[str] | None:
        """The waiting calls, best first, that may start now; None when all may.

        `waiting` comes best first; `slots` and `free_blocks` are what the engine has left. A call that fits only into
        blocks retained for better programs is deferred, and the search goes on: a later call may have its context here.
        `order` identifies the order of the waiting calls: as long as it stays the same, a search that found nothing is
        not repeated (None = always search).
        """
        known = self._verdict
        if known is not None and known.order == order and free_blocks <= known.free_blocks and now_us < known.until_us:
            return []
        self._expire(now_us)
        self.kept_blocks = self.passed_over = 0
        if not self._retained:
            return None
        sizes = [
            (each.place, program, self._memory.idle(each.context, each.first))
            for program, contexts in self._retained.items()
            for each in contexts
        ]
        self.kept_blocks = sum(size for _, _, size in sizes)
        able: list[str] = []
        for key in waiting:
            call = wanted(key)
            free = free_blocks - call.idle_blocks
            kept = sum(size for place, of, size in sizes if place < call.place and _yields(call.program, of))
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
        nothing = self.passed_over and not able and end_us is not None and order is not None
        self._verdict = _Verdict(order or 0, free_blocks, end_us or 0) if nothing else None
        return able if self.passed_over else None

    def refresh(self, taken_blocks: int, free_blocks: int) -> bool:
        """Moves retained blocks away from eviction once enough blocks were taken to come near them.

        `taken_blocks` counts all blocks ever taken from the free ones, which are taken oldest first: refreshed blocks
        are behind all others. Refreshes after half of these, because both counts are estimates.
        """
        contexts = [each for contexts in self._retained.values() for each in contexts]
        if not contexts or taken_blocks - self._refreshed_at < free_blocks // 64:
            return False
        kept_blocks = sum(self._memory.idle(each.context, each.first) for each in contexts)
        if taken_blocks - self._refreshed_at < (free_blocks - kept_blocks) // 2:
            return False
        self._refreshed_at = taken_blocks
        for each in sorted(contexts, key=lambda each: each.place, reverse=True):
            self._memory.refresh(each.context, each.first)
        return True


def _yields(program: ProgramKey, to: ProgramKey) -> bool:
    """A call of a program is held up for what is retained for another: of the same tenant, or of any if it has none.

    Otherwise a tenant would hold KV, for which it is not charged, against the others.
    """
    return program != to and program.tenant in (to.tenant, UNTICKETED)


def _covers(wait: Origin, context: Origin) -> bool:
    """The wait is of the context's thread, or of its whole program."""
    return wait.program_id == context.program_id and wait.thread_id in ("", context.thread_id)
