"""Which thread a call belongs to, and which calls it follows. Pure: no clock, no I/O, no contextvars, no locks.

A program's calls form a graph. It is inferred from what a context carries: a *point*, which is a thread and the calls
that its next call follows. Three rules make the graph:

1. The next call of a thread follows the thread's last one.
2. A flow (task or OS thread) that carries the point of another flow was forked there: it gets a thread of its own, and
   that thread's first call follows the point. Threads forked at one point are parallel while any of them is active; one
   that begins when all of them have ended follows all of them (a *wave*: LangGraph's steps, or
   `await asyncio.to_thread(...)` twice in a row).
3. A thread's next call after forks follows the last calls of those that have ended (a join); those still active are
   joined by a later call.

Every edge is a true "ended before it began". Missing are edges that no context shows, for example through a task that
only gathers others and makes no call itself (`with p.thread():` in it shows them). Ids of joined threads are reused, so
a program has as many threads as it is wide, not as many as it has calls.

`context` feeds this module from contextvars.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# Limits of what one process infers. AdmitCall accepts this many parents.
MAX_PARENTS = 64
# The process table forgets threads beyond its own limit, oldest first; a program this wide needs no more names.
MAX_INFERRED_THREADS = 1024
MAX_NAMED_THREADS = 2048
# Ended threads that a thread remembers for its next call, which can follow MAX_PARENTS of them.
MAX_UNJOINED = 1024
MAX_OTHERS = 8
MAIN = "main"


def newest(calls: Iterable[str]) -> tuple[str, ...]:
    """The last MAX_PARENTS calls, each once."""
    return tuple(dict.fromkeys(calls))[-MAX_PARENTS:]


def _unknown() -> None:
    return None


@dataclass(slots=True, eq=False)
class Point:
    """A position in a thread, as a context carries it. `base`: the calls that a thread forked here follows."""

    thread: Thread
    base: tuple[str, ...] = ()
    wave: dict[Thread, None] = field(default_factory=dict)


class Thread:
    """One chain of calls. `owner` is the flow that makes them, compared with ==.

    `alive` returns whether the owner is still active; None = unknown, then calls in flight decide.
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
        self.alive: Callable[[], bool | None] = _unknown
        self.unanswered: PendingCall | None = None
        self.in_flight = self.turn = 0
        self._forget_at = MAX_UNJOINED
        self.started = self.closed = self.inferred = self._adopted = False
        # For `context`, which recognises the context that this thread began in by it.
        self.home: object = None

    @property
    def ended(self) -> bool:
        """Has made calls and makes no more, or was closed."""
        if self.closed or not self.started:
            return self.closed
        alive = self.alive()
        return not self.in_flight if alive is None else not alive

    def frontier(self) -> tuple[str, ...]:
        """The calls that this thread's next call follows."""
        ended = [child for child in self.children if child.ended]
        calls = [call for child in ended for call in child.frontier()]
        if any(child.origin is self.point for child in ended):
            return newest(calls)
        return newest([*self.point.base, *calls])

    def adopt(self) -> None:
        """Makes its parent's next call join it."""
        if self.parent is not None and not self._adopted:
            self._adopted = True
            self.parent.forget_oldest()
            self.parent.children[self] = None
            if self.origin is not None:
                self.origin.wave[self] = None

    def forget_oldest(self) -> None:
        """Drops threads that no call can follow any more, in a program that forks without end and never joins."""
        if len(self.children) >= self._forget_at:
            for child in [child for child in self.children if child.ended][:-MAX_PARENTS]:
                child.release()
            # Twice what is left, so that the search costs nothing per fork.
            self._forget_at = max(MAX_UNJOINED, 2 * len(self.children))

    def release(self) -> None:
        """The thread was joined: its id may be reused, by itself if it continues."""
        if self.parent is not None and self._adopted:
            if self.origin is not None:
                self.origin.wave.pop(self, None)
            self._adopted, self.origin = False, None
            del self.parent.children[self]
            if self.inferred:
                self.tracker.release_id(self.thread_id)


@dataclass(slots=True, eq=False)
class PendingCall:
    thread: Thread
    parents: tuple[str, ...]
    joined: tuple[Thread, ...]
    turn: int
    over: bool = False


class Tracker:
    """The threads of one program, as one process sees them."""

    def __init__(
        self,
        program_id: str,
        owner: object,
        *,
        name: str = "",
        parent_program_id: str = "",
        budget: str = "",
        service_class: str = "",
    ) -> None:
        """`budget`: of its tree, in the form of agentserving.contract.budgets. `service_class`: what its calls ask for;
        empty = nothing."""
        self.program_id, self.name, self.parent_program_id = program_id, name, parent_program_id
        self.budget, self.service_class = budget, service_class
        self.main = Thread(self, MAIN, owner)
        self._free: list[int] = []
        self._inferred_count = 0
        self._names: set[str] = set()
        # Calls begun, and servers other than gateways that requests went to meanwhile.
        self.calls_begun = 0
        self.others: dict[str, None] = {}

    def elsewhere(self, server: str) -> None:
        """A request of the program went to a server that is no gateway."""
        if len(self.others) < MAX_OTHERS:
            self.others[server] = None

    # -- threads -------------------------------------------------------------------------------------------------

    def fork(self, at: Point, owner: object, name: str = "") -> Thread:
        """A thread that begins at a point. It is part of the graph from its first call on."""
        if at.wave and all(thread.ended for thread in at.wave):
            at.base = newest(call for thread in at.wave for call in thread.frontier())
            for thread in list(at.wave):
                thread.release()
        thread = Thread(self, self._named(name) if name else self._inferred(), owner, at.base)
        thread.inferred = not name
        thread.parent, thread.origin = at.thread, at
        return thread

    def join(self, into: Thread, threads: Iterable[Thread]) -> None:
        """The next call of `into` follows these threads, whether or not they have ended."""
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

    def _inferred(self) -> str:
        if self._free:
            return f"t{heapq.heappop(self._free)}"
        self._inferred_count += 1
        return f"t{(self._inferred_count - 1) % MAX_INFERRED_THREADS + 1}"

    def release_id(self, thread_id: str) -> None:
        """Makes an inferred id available again."""
        number = int(thread_id[1:])
        if number not in self._free:
            heapq.heappush(self._free, number)

    # -- calls ---------------------------------------------------------------------------------------------------

    def begin(self, thread: Thread) -> PendingCall:
        """A call of a thread begins. Call `answered` when its id is known, and `end` when it is over.

        An earlier one without a response is over: a thread waits for one at a time, and not every failure is reported.
        """
        if thread.unanswered is not None:
            self.end(thread.unanswered)
        parents = thread.frontier()
        joined = tuple(child for child in thread.children if child.ended)
        thread.adopt()
        thread.started, thread.closed = True, False
        thread.in_flight += 1
        self.calls_begun += 1
        thread.unanswered = PendingCall(thread, parents, joined, thread.turn)
        return thread.unanswered

    def answered(self, pending: PendingCall, call_id: str, *, in_home: bool) -> Point:
        """Makes this the thread's last call; returns the point that the thread's context should carry.

        `in_home`: the caller is in the thread's own context and can store the new point there, so that carriers of the
        old point are known to have been forked before this call. In a copy of the context, the old point is moved.
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
        """The call is over, successful or not. Calling it again has no effect."""
        if not pending.over:
            pending.over = True
            pending.thread.in_flight -= 1
            if pending.thread.unanswered is pending:
                pending.thread.unanswered = None
