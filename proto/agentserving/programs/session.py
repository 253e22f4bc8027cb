"""`agentserving.program()`: the client's open handle on a program, its threads, and its waits for tools.

Headers suffice for the gateway, which opens programs that it does not know, so nothing here can break an agent. With a
control plane, `notifications` also sends it the program's begin, its end with the outcome, and its tool waits. Without
one, a program ends when it has been idle for long.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentserving.contract.budgets import UNLIMITED, Budget, parse, text_of
from agentserving.contract.service_class import read_service_class
from agentserving.programs import context, headers
from agentserving.programs.carrying import PROGRAM_ID, inherited_program_id
from agentserving.programs.notifications import Notifier
from agentserving.programs.tracking import Point, Thread, Tracker

if TYPE_CHECKING:
    from agentserving.client.aio import AsyncClient
    from agentserving.client.blocking import Client
    from agentserving.client.operations import Operation

log = logging.getLogger("agentserving")

# Depth limit of the process table; a deeper program becomes a child of the deepest one that may have children.
MAX_DEPTH = 15


class ProgramSession:
    """An open program: `with` or `async with` opens and closes it, COMPLETED, or FAILED when the body raises.

    Inside, every call made through the hooks, or through `Client.generate`, belongs to the program: in this task, in
    tasks and copied contexts that begin here, and in `asyncio.to_thread`. A program opened inside is a child of this
    one. A task that outlives the block still belongs to the program: the gateway reopens the program for its calls.
    """

    def __init__(self, tracker: Tracker, depth: int, notifier: Notifier) -> None:
        self._tracker, self._depth, self._notifier = tracker, depth, notifier
        self._previous: tuple[Point | None, object] = (None, None)
        self._is_ours, self._failed, self._entered = True, False, False

    @property
    def program_id(self) -> str:
        """Its id, as `agentserving get` expects it."""
        return self._tracker.program_id

    @property
    def name(self) -> str:
        """A name for people, and the program's class."""
        return self._tracker.name

    @property
    def parent_program_id(self) -> str:
        """The program it is a sub-agent of; empty for none."""
        return self._tracker.parent_program_id

    def headers(self) -> dict[str, str]:
        """Headers that make a request the current thread's next call, for HTTP libraries that are not hooked."""
        thread = self._thread_here()
        return headers.headers_of(
            self.program_id,
            parent_program_id=self.parent_program_id,
            name=self.name,
            thread=thread.thread_id,
            parents=context.frontier(thread),
            budget=self._tracker.budget,
            service_class=self._tracker.service_class,
        )

    def environment(self) -> dict[str, str]:
        """Variables for a subprocess whose calls belong to this program, if it calls `instrument()`."""
        return {PROGRAM_ID: self.program_id}

    # -- threads -------------------------------------------------------------------------------------------------

    def _thread_here(self) -> Thread:
        """The current thread if the context is in this program, else its main thread."""
        at = context.current_point()
        if at is None or at.thread.tracker is not self._tracker:
            return self._tracker.main
        return context.current_thread(at)

    def fork(self, name: str = "") -> ProgramThread:
        """A thread that begins here: its first call follows the current thread's last one. Run it with `with`."""
        return ProgramThread(context.fork(self._thread_here(), headers.thread_id(name) if name else ""))

    def thread(self, name: str = "") -> ProgramThread:
        """`with p.thread("critic"):` the calls inside are a thread of their own; the next call outside joins it."""
        return self.fork(name)

    def join(self, *threads: ProgramThread) -> None:
        """The current thread's next call follows the last calls of these."""
        context.join(self._thread_here(), tuple(thread.tracked for thread in threads))

    def tool_wait(self, tool: str, *, expected_s: float = 0.0) -> ToolWait:
        """`with` or `async with`: this thread of the program waits for a tool or a human.

        `expected_s`: how long, 0 = unknown; engines decide by it whether the program's KV blocks are worth keeping.
        """
        if expected_s < 0:
            raise ValueError(f"expected_s: must not be negative, got {expected_s}")
        return ToolWait(self._notifier, self.program_id, self._thread_here().thread_id, tool, expected_s)

    # -- life ----------------------------------------------------------------------------------------------------

    def _open(self) -> Operation[Any]:
        from agentserving.client import operations

        return operations.open_program(
            self.name,
            program_id=self.program_id,
            parent_program_id=self.parent_program_id,
            budget=self._tracker.budget,
            service_class=read_service_class(self._tracker.service_class),
        )

    def _close(self) -> Operation[Any]:
        from agentserving.client import operations, values

        outcome = values.Outcome.FAILED if self._failed else values.Outcome.COMPLETED
        return operations.close_program(self.program_id, outcome=outcome)

    def _once(self) -> None:
        if self._entered:
            raise RuntimeError(f"program {self.program_id!r} has been opened before: call program() for another")
        self._entered = True

    def _enter(self, refusal: str) -> Self:
        # A program that was open before is closed by its owner.
        self._is_ours = refusal != "PROGRAM_EXISTS"
        self._previous = (context.current_point(), context.current_session())
        context.enter(self._tracker, self)
        return self

    def _leave(self, error: BaseException | None) -> None:
        self._failed = error is not None
        context.leave(*self._previous)
        if not self._tracker.calls_begun and self._tracker.others:
            log.warning(
                "program %s made no call: no gateway's address is among those that were called (%s);"
                " set AGENTSERVING_GATEWAY or OPENAI_BASE_URL to it, or pass base_urls to instrument()",
                self.name or self.program_id, ", ".join(self._tracker.others),
            )  # fmt: skip

    def __enter__(self) -> Self:
        self._once()
        return self._enter(self._notifier.notify(self._open))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._leave(error)
        if self._is_ours:
            self._notifier.notify(self._close)
        self._notifier.close()

    async def __aenter__(self) -> Self:
        self._once()
        return self._enter(await self._notifier.anotify(self._open))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._leave(error)
        if self._is_ours:
            await self._notifier.anotify(self._close)
        await self._notifier.aclose()

    def child_parent(self) -> tuple[str, int]:
        """The parent of a program opened inside, and that program's depth."""
        if self._depth >= MAX_DEPTH:
            return self.parent_program_id, self._depth
        return self.program_id, self._depth + 1


class ProgramThread:
    """A thread of a program. `with` makes the calls of the block its calls, wherever the block runs."""

    def __init__(self, tracked: Thread) -> None:
        self.tracked = tracked
        self._running: AbstractContextManager[None] | None = None

    @property
    def thread_id(self) -> str:
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

    def __init__(self, notifier: Notifier, program_id: str, thread_id: str, tool: str, expected_s: float) -> None:
        self._notifier, self._program_id, self._thread_id = notifier, program_id, thread_id
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
        self._notifier.notify(self._begin)
        return self

    def __exit__(self, *error: object) -> None:
        self._notifier.notify(self._end)

    async def __aenter__(self) -> Self:
        await self._notifier.anotify(self._begin)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._notifier.anotify(self._end)


def current_program() -> ProgramSession | None:
    """The program that a call made here would belong to; None outside of programs."""
    session = context.current_session()
    return session if isinstance(session, ProgramSession) else None


def program(
    name: str = "",
    *,
    program_id: str | None = None,
    parent: ProgramSession | str | None = None,
    control_plane: str | Client | AsyncClient | None = None,
    api_key: str | None = None,
    budget: Budget | str = "",
    service_class: str = "",
) -> ProgramSession:
    """A program: `with agentserving.program("triage") as p:`, or `async with`.

    name: for people; cut at 128 bytes. program_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -; random when None. A program
    that is open already is continued, and not closed at the end. parent: the program this one is a sub-agent of, by
    default the current one, else that of AGENTSERVING_PROGRAM_ID; "" = none. control_plane: its address, or a client to
    use (Client for `with`, AsyncClient for `async with`); by default AGENTSERVING_CONTROL_PLANE, "" = none. api_key:
    for the control plane; by default the first key of agentserving in AGENTSERVING_API_KEY, OPENAI_API_KEY,
    ANTHROPIC_API_KEY. budget: what it and its sub-agents may use before they are paused, as a value or text
    (tokens=200k,engine-seconds=300,calls=50); a program below another one spends its root's, so it has none of its own.
    service_class: interactive, standard or batch; "" = the key's, or else the cluster's; programs inside have that of
    the outermost one. ValueError for an invalid id, budget or class.
    """
    limits = text_of(parse(budget) if isinstance(budget, str) and budget else budget or UNLIMITED)
    service_class = read_service_class(service_class).label
    program_id = f"p-{uuid.uuid4().hex}" if program_id is None else program_id
    if not headers.is_program_id(program_id):
        raise ValueError(f"program_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {program_id!r}")
    above = (current_program() or inherited_program_id()) if parent is None else parent
    if parent is None and above == program_id:
        above = ""
    parent_id, depth = above.child_parent() if isinstance(above, ProgramSession) else (above or "", 1 if above else 0)
    if parent_id and not headers.is_program_id(parent_id):
        raise ValueError(f"parent: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {parent_id!r}")
    if parent_id == program_id:
        raise ValueError(f"parent: program {program_id!r} cannot be its own parent")
    if parent_id and limits:
        log.warning("program %s is a sub-agent and spends its root's budget: %s is ignored", program_id, limits)
        limits = ""
    tracker = Tracker(
        program_id,
        None,
        name=headers.short_name(name),
        parent_program_id=parent_id,
        budget=limits,
        service_class=service_class,
    )
    return ProgramSession(tracker, depth, Notifier.of(control_plane, api_key))


__all__ = ["ProgramSession", "ProgramThread", "ToolWait", "current_program", "program"]
