"""Carries a program through tasks, copied contexts and OS threads: one contextvar with a point of `tracking`.

asyncio copies the context into every task, `asyncio.to_thread` and LangGraph's executors copy it into every worker, so
the point goes along by itself. A call is made by a *flow*: the running asyncio task, or else the OS thread. If the flow
owns the point's thread, the call is that thread's next one; otherwise it is a fork (`tracking` has the rules).

Contextvars do not show whether the current context is the one that the thread began in, or a temporary copy of it
(LangChain runs every step in a copy). Only in the former does a new point reach later forks. A Token shows it: it can
be reset only in the context that created it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from agentserving.client import current_call
from agentserving.programs import headers
from agentserving.programs.tracking import PendingCall, Point, Thread, Tracker

_point: ContextVar[Point | None] = ContextVar("agentserving_point", default=None)
_session: ContextVar[object] = ContextVar("agentserving_session", default=None)
_probe: ContextVar[None] = ContextVar("agentserving_probe")
# Tasks may run on several loops, and on worker threads. Re-entrant: a finalizer may end a call at any time.
_lock = threading.RLock()
_by_task: weakref.WeakKeyDictionary[asyncio.Task[Any], dict[Tracker, Thread]] = weakref.WeakKeyDictionary()


P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Flow:
    """What is running: a task, or an OS thread outside of tasks."""

    os_thread: int
    task: weakref.ref[asyncio.Task[Any]] | None

    def alive(self) -> bool | None:
        """Whether a task has not ended; None for an OS thread, which does not show when it leaves a program."""
        if self.task is None:
            return None
        task = self.task()
        return task is not None and not task.done()


def current_task() -> asyncio.Task[Any] | None:
    """None outside of a running loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def current_flow() -> Flow:
    task = current_task()
    return Flow(threading.get_ident(), weakref.ref(task) if task is not None else None)


def _at_home(thread: Thread) -> bool:
    """True in the context that the thread began in, not in copies of it."""
    if not isinstance(thread.home, Token):
        return False
    try:
        _probe.reset(thread.home)
    except ValueError:
        return False
    thread.home = _probe.set(None)
    return True


def _settle(thread: Thread) -> None:
    """Makes this context the thread's home."""
    thread.home = _probe.set(None)
    _point.set(thread.point)


def current_point() -> Point | None:
    """The point of this context; None outside of programs."""
    return _point.get()


def current_session() -> object:
    """The session of the current program, as passed to `enter`."""
    return _session.get()


def enter(tracker: Tracker, session: object) -> None:
    """Makes this flow the main thread of a program: calls belong to it from here on."""
    with _lock:
        tracker.main.owner = current_flow()
        _settle(tracker.main)
    _session.set(session)


def leave(point: Point | None, session: object) -> None:
    """Restores what was current before `enter`, even from another context."""
    _point.set(point)
    _session.set(session)


@contextmanager
def _at(point: Point | None, session: object) -> Iterator[None]:
    tokens = _point.set(point), _session.set(session)
    try:
        yield
    finally:
        _point.reset(tokens[0])
        _session.reset(tokens[1])


def carried(function: Callable[P, R]) -> Callable[P, R] | None:
    """The function, to be run in the current program by another OS thread; None outside of programs."""
    point, session = _point.get(), _session.get()
    if point is None:
        return None

    @functools.wraps(function)
    def run(*args: P.args, **named: P.kwargs) -> R:
        with _at(point, session):
            return function(*args, **named)

    return run


def outside() -> AbstractContextManager[None]:
    """What the block starts belongs to no program."""
    return _at(None, None)


def current_thread(at: Point) -> Thread:
    """The thread of the caller: a new one if its flow does not own the point."""
    flow = current_flow()
    tracker = at.thread.tracker
    with _lock:
        if at.thread.owner == flow:
            return at.thread
        task = current_task()
        known = _by_task.get(task, {}).get(tracker) if task is not None else None
        if known is not None:
            return known
        thread = tracker.fork(at, flow)
        thread.alive = flow.alive
        if task is not None:
            _by_task.setdefault(task, {})[tracker] = thread
        _settle(thread)
        return thread


def frontier(here: Thread) -> tuple[str, ...]:
    """The calls that the next call of `here` follows."""
    with _lock:
        return here.frontier()


def fork(here: Thread, name: str = "") -> Thread:
    """A thread that begins where `here` is now; any flow may run it."""
    with _lock:
        return here.tracker.fork(here.point, None, name)


def join(here: Thread, threads: tuple[Thread, ...]) -> None:
    """The next call of `here` follows these threads."""
    with _lock:
        here.tracker.join(here, threads)


@contextmanager
def running(thread: Thread) -> Iterator[None]:
    """Makes the calls of this flow the thread's."""
    previous = _point.get()
    finished = False
    with _lock:
        thread.owner, thread.closed = current_flow(), False
        thread.alive = lambda: not finished
        _settle(thread)
    try:
        yield
    finally:
        finished = True
        _point.set(previous)


class CarriedCall:
    """A call of the current program in flight. `headers`: what its request must carry."""

    __slots__ = ("__weakref__", "_pending", "headers")

    def __init__(self, pending: PendingCall) -> None:
        self._pending = pending
        thread = pending.thread
        tracker = thread.tracker
        self.headers = headers.headers_of(
            tracker.program_id,
            parent_program_id=tracker.parent_program_id,
            name=tracker.name,
            thread=thread.thread_id,
            parents=pending.parents,
            budget=tracker.budget,
            service_class=tracker.service_class,
        )

    @property
    def tracker(self) -> Tracker:
        return self._pending.thread.tracker

    @property
    def program_id(self) -> str:
        return self.tracker.program_id

    @property
    def program_name(self) -> str:
        """The program's name, and class."""
        return self.tracker.name

    @property
    def parent_program_id(self) -> str:
        """The program that it is a sub-agent of; empty for none."""
        return self.tracker.parent_program_id

    @property
    def thread_id(self) -> str:
        return self._pending.thread.thread_id

    @property
    def parents(self) -> tuple[str, ...]:
        """Ids of the calls it follows."""
        return self._pending.parents

    def answered(self, call_id: str) -> None:
        """A successful response has begun; this is the call's id. Ids of other programs are ignored."""
        thread = self._pending.thread
        if not call_id.startswith(self.program_id + "."):
            return
        with _lock:
            in_home = _at_home(thread)
            point = thread.tracker.answered(self._pending, call_id, in_home=in_home)
            if in_home:
                _point.set(point)

    def end(self) -> None:
        """The response has ended."""
        with _lock:
            self._pending.thread.tracker.end(self._pending)


def begin_call() -> CarriedCall | None:
    """The next call of the current program; None outside of programs."""
    at = _point.get()
    if at is None:
        return None
    with _lock:
        thread = current_thread(at)
        return CarriedCall(thread.tracker.begin(thread))


def _begin_call_of(program_id: str | None) -> CarriedCall | None:
    at = _point.get()
    if at is None or program_id not in (None, at.thread.tracker.program_id):
        return None
    return begin_call()


# Clients are below programs: they learn of the current program through this hook.
current_call.begin = _begin_call_of
