"""Which thread a call belongs to, and which calls it comes after. Pure: no clock, no I/O, no contextvars, no locks.

A program's calls form a graph. Nobody draws it by hand, so it is read off what a context carries: a *point*, that is a
thread and the calls that its next call comes after. Three rules make the graph:

1. The next call of a thread comes after the thread's last one.
2. Whoever comes with a point of somebody else (another task, another OS thread) has been forked there: it gets a
   thread of its own, whose first call comes after the point. Those forked at one point while others of them are still
   at work are parallel; one that begins when all of them have ended comes after all of them (a *wave*: LangGraph's
   steps, `await asyncio.to_thread(...)` twice in a row).
3. A thread's next call after forks comes after the last calls of those that have ended (a join); those still at work
   are joined by a later call.

Every edge is a true "ended before it began"; what is missed is what no context shows, for example a task that only
gathers others and makes no call itself (`with p.thread():` in it shows it). Ids of threads that were joined are used
again, so a program has as many threads as it is wide, not as many as it has calls.

`context.py` feeds this from contextvars; `limits` are those of the control plane, so that no inference makes it refuse.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# The process table refuses more (MAX_PARENTS, MAX_THREADS); threads have room left for other processes' names.
MAX_PARENTS = 64
MAX_INFERRED_THREADS = 1024
MAX_NAMED_THREADS = 2048
# Ended threads that a thread remembers for its next call, which can name MAX_PARENTS of them.
MAX_UNJOINED = 1024
MAIN = "main"


def newest(calls: Iterable[str]) -> tuple[str, ...]:
    """Without repetition, at most MAX_PARENTS, the later ones."""
    return tuple(dict.fromkeys(calls))[-MAX_PARENTS:]


def _untold() -> None:
    return None


@dataclass(slots=True, eq=False)
class Point:
    """What a context carries: where in a thread it is. `base`: the calls that whatever is forked here comes after."""

    thread: Thread
    base: tuple[str, ...] = ()
    wave: dict[Thread, None] = field(default_factory=dict)


class Thread:
    """One chain of calls. `owner` is whoever makes them, compared with ==.

    `alive` tells whether the owner is still at work; None = nobody knows, then calls on their way tell.
    """

    __slots__ = (
        "_adopted", "_forget_at", "alive", "children", "closed", "home", "in_flight", "inferred", "origin", "owner",
        "parent", "point", "started", "thread_id", "tracker", "turn", "unanswered",
    )  # fmt: skip

    def __init__(self, tracker: Tracker, thread_id: str, owner: object, base: tuple[str, ...] = ()) -> None:
        self.tracker, self.thread_id, self.owner = tracker, thread_id, owner
        self.point = Point(self, base)
        # Ordered sets: forked from here, started, and not joined yet.
        self.children: dict[Thread, None] = {}
        self.parent: Thread | None = None
        # The point it was forked at, until the parent has moved on from there.
        self.origin: Point | None = None
        self.alive: Callable[[], bool | None] = _untold
        self.unanswered: PendingCall | None = None
        self.in_flight = self.turn = 0
        self._forget_at = MAX_UNJOINED
        self.started = self.closed = self.inferred = self._adopted = False
        # Kept here for the shell: how it knows again the context that this thread began in.
        self.home: object = None

    @property
    def ended(self) -> bool:
        """Has made calls and makes no more; or was told to be over."""
        if self.closed or not self.started:
            return self.closed
        alive = self.alive()
        return not self.in_flight if alive is None else not alive

    def frontier(self) -> tuple[str, ...]:
        """The calls that this thread's next call comes after."""
        ended = [child for child in self.children if child.ended]
        calls = [call for child in ended for call in child.frontier()]
        if any(child.origin is self.point for child in ended):
            return newest(calls)
        return newest([*self.point.base, *calls])

    def adopt(self) -> None:
        """Becomes one of those that its parent's next call joins."""
        if self.parent is not None and not self._adopted:
            self._adopted = True
            self.parent.forget_oldest()
            self.parent.children[self] = None
            if self.origin is not None:
                self.origin.wave[self] = None

    def forget_oldest(self) -> None:
        """Lets go of what no call can name any more, in a program that forks for ever and never joins."""
        if len(self.children) >= self._forget_at:
            for child in [child for child in self.children if child.ended][:-MAX_PARENTS]:
                child.release()
            # Twice what is left, so that looking costs nothing per fork.
            self._forget_at = max(MAX_UNJOINED, 2 * len(self.children))

    def release(self) -> None:
        """Joined: its id may serve another thread, itself if it goes on."""
        if self.parent is not None and self._adopted:
            if self.origin is not None:
                self.origin.wave.pop(self, None)
            self._adopted, self.origin = False, None
            del self.parent.children[self]
            if self.inferred:
                self.tracker.give_back(self.thread_id)


@dataclass(slots=True, eq=False)
class PendingCall:
    """A call on its way."""

    thread: Thread
    parents: tuple[str, ...]
    joined: tuple[Thread, ...]
    turn: int
    over: bool = False


class Tracker:
    """The threads of one program, as one process sees them."""

    def __init__(self, program_id: str, owner: object, *, name: str = "", parent_program_id: str = "") -> None:
        self.program_id, self.name, self.parent_program_id = program_id, name, parent_program_id
        self.main = Thread(self, MAIN, owner)
        self._free: list[int] = []
        self._made = 0
        self._names: set[str] = set()

    # -- threads -------------------------------------------------------------------------------------------------

    def fork(self, at: Point, owner: object, name: str = "") -> Thread:
        """A thread that begins at a point. It shows in the graph from its first call on."""
        if at.wave and all(thread.ended for thread in at.wave):
            at.base = newest(call for thread in at.wave for call in thread.frontier())
            for thread in list(at.wave):
                thread.release()
        thread = Thread(self, self._named(name) if name else self._take(), owner, at.base)
        thread.inferred = not name
        thread.parent, thread.origin = at.thread, at
        return thread

    def join(self, into: Thread, threads: Iterable[Thread]) -> None:
        """The next call of `into` comes after these, whether or not they say that they are over."""
        for thread in threads:
            thread.closed = True
            if thread.parent is not into:
                thread.release()
                thread.parent, thread.origin = into, None
            thread.adopt()

    def _named(self, name: str) -> str:
        if name not in self._names:
            if len(self._names) >= MAX_NAMED_THREADS:
                return f"t{zlib.crc32(name.encode()) % MAX_INFERRED_THREADS + 1}"
            self._names.add(name)
        return name

    def _take(self) -> str:
        if self._free:
            return f"t{heapq.heappop(self._free)}"
        self._made += 1
        return f"t{(self._made - 1) % MAX_INFERRED_THREADS + 1}"

    def give_back(self, thread_id: str) -> None:
        """An inferred id that may be used again."""
        number = int(thread_id[1:])
        if number not in self._free:
            heapq.heappush(self._free, number)

    # -- calls ---------------------------------------------------------------------------------------------------

    def begin(self, thread: Thread) -> PendingCall:
        """A call of a thread is on its way; tell `answered` when its id is known, `end` when it is over.

        An earlier one that has had no answer is over: a thread waits for one at a time, and not every failure is told.
        """
        if thread.unanswered is not None:
            self.end(thread.unanswered)
        parents = thread.frontier()
        joined = tuple(child for child in thread.children if child.ended)
        thread.adopt()
        thread.started, thread.closed = True, False
        thread.in_flight += 1
        thread.unanswered = PendingCall(thread, parents, joined, thread.turn)
        return thread.unanswered

    def answered(self, pending: PendingCall, call_id: str, *, in_home: bool) -> Point:
        """The thread's last call is now this one; gives the point that its context should carry.

        `in_home`: the caller can put that point where the thread's own context keeps it. Then whoever carries the old
        point was forked before this call. Else (the call was made in a copy of the context) the old point moves along.
        """
        thread = pending.thread
        if thread.unanswered is pending:
            thread.unanswered = None
        parallel = pending.turn != thread.turn
        base = newest([*thread.point.base, call_id]) if parallel else (call_id,)
        thread.turn += 1
        for child in pending.joined:
            child.release()
        old = thread.point
        if in_home:
            thread.point = Point(thread, base)
        else:
            for child in old.wave:
                child.origin = None
            old.base, old.wave = base, {}
        return thread.point

    def end(self, pending: PendingCall) -> None:
        """The call is over, well or not. Twice is once."""
        if not pending.over:
            pending.over = True
            pending.thread.in_flight -= 1
            if pending.thread.unanswered is pending:
                pending.thread.unanswered = None
