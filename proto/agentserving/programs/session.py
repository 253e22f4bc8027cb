"""`agentserving.program()`: the client's open handle on a program, its threads, and its waits for tools.

The program is known to the gateway by headers alone (it opens what it does not know), so nothing here can break an
agent. What the control plane is told besides, when there is one to tell, is in `telling.py`: that the program begins
and how it ended, and when it waits for a tool. Without a control plane a program ends when it has been idle for long.
"""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentserving.programs import context, headers
from agentserving.programs.telling import Teller
from agentserving.programs.tracking import Point, Thread, Tracker

if TYPE_CHECKING:
    from agentserving.client.asynchronous import AsyncClient
    from agentserving.client.operations import Operation
    from agentserving.client.sync import Client

# The process table nests this deep (MAX_DEPTH); below it a program hangs on the deepest one that may have children.
MAX_DEPTH = 15


class ProgramSession:
    """An open program: `with` or `async with` opens and closes it, COMPLETED, or FAILED when the body raises.

    Inside, every call that is made through the hooks, or a client of ours, is a call of the program: in this task, in
    tasks and copied contexts that begin here, in `asyncio.to_thread`. A program opened inside is a child of this one.
    A task that outlives the body is still of the program: the gateway takes its calls, and opens the program again.
    """

    def __init__(self, tracker: Tracker, depth: int, teller: Teller) -> None:
        self._tracker, self._depth, self._teller = tracker, depth, teller
        self._previous: tuple[Point | None, object] = (None, None)
        self._ours, self._failed, self._entered = True, False, False

    @property
    def program_id(self) -> str:
        """What `agentserving get` finds it by."""
        return self._tracker.program_id

    @property
    def name(self) -> str:
        """For people."""
        return self._tracker.name

    @property
    def parent_program_id(self) -> str:
        """Empty for a program of its own."""
        return self._tracker.parent_program_id

    def headers(self) -> dict[str, str]:
        """What a request that goes no way of ours should say, to be the current thread's next call."""
        thread = self._thread_here()
        return headers.headers_of(
            self.program_id,
            parent_program_id=self.parent_program_id,
            name=self.name,
            thread=thread.thread_id,
            parents=context.frontier(thread),
        )

    # -- threads -------------------------------------------------------------------------------------------------

    def _thread_here(self) -> Thread:
        """The current thread, when the context is in this program; else its main thread."""
        at = context.current_point()
        if at is None or at.thread.tracker is not self._tracker:
            return self._tracker.main
        return context.current_thread(at)

    def fork(self, name: str = "") -> ProgramThread:
        """A thread that begins here: its first call comes after the current thread's last one. Run it with `with`."""
        return ProgramThread(context.fork(self._thread_here(), headers.thread_id(name) if name else ""))

    def thread(self, name: str = "") -> ProgramThread:
        """`with p.thread("critic"):` the calls inside are a thread of their own, which the next call outside joins."""
        return self.fork(name)

    def join(self, *threads: ProgramThread) -> None:
        """The current thread's next call comes after the last calls of these."""
        context.join(self._thread_here(), tuple(thread.tracked for thread in threads))

    def tool_wait(self, tool: str, *, expected_s: float = 0.0) -> ToolWait:
        """`with` or `async with`: the program waits for a tool or a human. `expected_s`: 0 = unknown. A hint."""
        if expected_s < 0:
            raise ValueError(f"expected_s: must not be negative, got {expected_s}")
        return ToolWait(self._teller, self.program_id, self._thread_here().thread_id, tool, expected_s)

    # -- life ----------------------------------------------------------------------------------------------------

    def _open(self) -> Operation[Any]:
        from agentserving.client import operations

        return operations.open_program(self.name, program_id=self.program_id, parent_program_id=self.parent_program_id)

    def _close(self) -> Operation[Any]:
        from agentserving.client import operations, values

        outcome = values.Outcome.FAILED if self._failed else values.Outcome.COMPLETED
        return operations.close_program(self.program_id, outcome=outcome)

    def _once(self) -> None:
        if self._entered:
            raise RuntimeError(f"program {self.program_id!r} has been opened before: call program() for another")
        self._entered = True

    def _enter(self, answer: str) -> Self:
        # One that is open already belongs to whoever has opened it.
        self._ours = answer != "PROGRAM_EXISTS"
        self._previous = (context.current_point(), context.current_session())
        context.enter(self._tracker, self)
        return self

    def _leave(self, error: BaseException | None) -> None:
        self._failed = error is not None
        context.leave(*self._previous)

    def __enter__(self) -> Self:
        self._once()
        return self._enter(self._teller.tell(self._open))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave(error)
        if self._ours:
            self._teller.tell(self._close)
        self._teller.end()

    async def __aenter__(self) -> Self:
        self._once()
        return self._enter(await self._teller.atell(self._open))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._leave(error)
        if self._ours:
            await self._teller.atell(self._close)
        await self._teller.aend()

    def child_parent(self) -> tuple[str, int]:
        """Program that a child hangs on, and the child's depth."""
        if self._depth >= MAX_DEPTH:
            return self.parent_program_id, self._depth
        return self.program_id, self._depth + 1


class ProgramThread:
    """A thread of a program. `with` makes the calls of the body its calls, wherever that body runs."""

    def __init__(self, tracked: Thread) -> None:
        self.tracked = tracked
        self._running: AbstractContextManager[None] | None = None

    @property
    def thread_id(self) -> str:
        """As `agentserving get` shows it."""
        return self.tracked.thread_id

    def __enter__(self) -> Self:
        self._running = context.running(self.tracked)
        self._running.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(None, None, None)


class ToolWait:
    """One wait of a thread for a tool."""

    def __init__(self, teller: Teller, program_id: str, thread_id: str, tool: str, expected_s: float) -> None:
        self._teller, self._program_id, self._thread_id = teller, program_id, thread_id
        self._tool, self._expected_s = headers.short_name(tool), expected_s

    def _begin(self) -> Operation[None]:
        from agentserving.client import operations

        return operations.begin_tool_wait(
            self._program_id, tool=self._tool, thread_id=self._thread_id, expected_s=self._expected_s
        )

    def _end(self) -> Operation[None]:
        from agentserving.client import operations

        return operations.end_tool_wait(self._program_id, thread_id=self._thread_id)

    def __enter__(self) -> Self:
        self._teller.tell(self._begin)
        return self

    def __exit__(self, *error: object) -> None:
        self._teller.tell(self._end)

    async def __aenter__(self) -> Self:
        await self._teller.atell(self._begin)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._teller.atell(self._end)


def current_program() -> ProgramSession | None:
    """The program that a call made here would be a call of; None outside of programs."""
    session = context.current_session()
    return session if isinstance(session, ProgramSession) else None


def program(
    name: str = "",
    *,
    program_id: str | None = None,
    parent: ProgramSession | str | None = None,
    control_plane: str | Client | AsyncClient | None = None,
) -> ProgramSession:
    """A program: `with agentserving.program("triage") as p:`, or `async with`.

    `name`: for people; cut at 128 bytes. `program_id`: 1 to 128 of A-Z a-z 0-9 . _ : @ / -; made up when None. One that
    is open already is gone on with, and not closed at the end. `parent`: the program this one is a sub-agent of, by
    default the current one; "" = none. `control_plane`: its address, or a client to use (Client for `with`, AsyncClient
    for `async with`); by default AGENTSERVING_CONTROL_PLANE, "" = none. ValueError for a bad id.
    """
    program_id = f"p-{uuid.uuid4().hex}" if program_id is None else program_id
    if not headers.is_program_id(program_id):
        raise ValueError(f"program_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {program_id!r}")
    above = current_program() if parent is None else parent
    parent_id, depth = above.child_parent() if isinstance(above, ProgramSession) else (above or "", 1 if above else 0)
    if parent_id and not headers.is_program_id(parent_id):
        raise ValueError(f"parent: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {parent_id!r}")
    if parent_id == program_id:
        raise ValueError(f"parent: program {program_id!r} cannot be its own parent")
    tracker = Tracker(program_id, None, name=headers.short_name(name), parent_program_id=parent_id)
    return ProgramSession(tracker, depth, Teller.of(control_plane))


__all__ = ["ProgramSession", "ProgramThread", "ToolWait", "current_program", "program"]
