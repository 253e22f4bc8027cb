"""Runs a process: its signals, its background tasks and its exit code.

Every background task has a name and a supervisor. A task that fails, returns too early or is cancelled by something
else than the supervisor ends the process with a logged reason: a process that lost a part of itself must not go on
answering probes. Whoever started it (the kubelet, `agentserving up`) starts it again. Tasks whose work is optional are
started with `restart`: they are restarted after a delay, counted and logged.

    0   stopped by SIGTERM or SIGINT          2   flags or environment make no sense (argparse)
    1   cannot start: a cause outside         70  a task failed (EX_SOFTWARE of sysexits.h)
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

import structlog
from prometheus_client import Counter

from agentserving_process import memory
from agentserving_process.backoff import Backoff

log = structlog.get_logger()

OK, CANNOT_START, TASK_FAILED = 0, 1, 70
# A process that ends because a task failed may clean up for this long; then it ends without.
CLEANUP_S = 10.0
# A restarted task that has run for this long is well again: the next failure is its first.
WELL_AFTER_S = 60.0

RESTARTS = Counter("agentserving_task_restarts", "Background tasks restarted after a failure", ["task"])
UNHANDLED = Counter("agentserving_unhandled_errors", "Exceptions that no task or callback has handled")

Work = Callable[[], Coroutine[Any, Any, None]]


class CannotStartError(Exception):
    """The process cannot start for a reason that its user can repair; the message names it."""


class TaskFailedError(Exception):
    """A supervised task has ended the process. The original exception, if any, is its cause."""

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(f"{task}: {reason}")
        self.task, self.reason = task, reason


class Supervisor:
    """Owns the background tasks of a process, or of a part of it that starts and ends as a whole.

    async with Supervisor() as supervisor:
        supervisor.start("name", work)     # `work()` must run until it is cancelled
        await supervisor.stop_requested()

    Leaving the block cancels every task and waits for it. A failure cancels the block itself and raises
    TaskFailedError at its end.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._on_failure: Callable[[], object] = lambda: None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            first = _first(group.subgroup(TaskFailedError) or group)
            raise first from first.__cause__

    def start(
        self,
        name: str,
        work: Work,
        *,
        restart: Backoff | None = None,
        may_end: bool = False,
        passes: tuple[type[Exception], ...] = (),
    ) -> asyncio.Task[None]:
        """Runs `work()` in the background until the block ends.

        restart: run it again after a failure or an early end, after this delay. may_end: returning is not a failure.
        passes: exceptions that end the block as they are, without the log of a failure, for its owner to handle.
        """
        supervised = self._supervised(name, work, restart, may_end, passes)
        task = self._group.create_task(supervised, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def child(self) -> Supervisor:
        """A supervisor for a part of the process, to be entered by the caller. A failure there ends the process, too,
        unless the caller handles the exception that its block raises."""
        child = Supervisor()
        child._on_failure = self._on_failure
        return child

    def stop(self) -> None:
        """Asks the process to stop, as SIGTERM does."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """True once a stop has been requested."""
        return self._stop.is_set()

    async def stop_requested(self) -> None:
        """Waits for SIGTERM, SIGINT or `stop`."""
        await self._stop.wait()

    async def _supervised(
        self, name: str, work: Work, restart: Backoff | None, may_end: bool, passes: tuple[type[Exception], ...]
    ) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            failure = await _failure_of(work)
            if failure is None and may_end:
                return
            if isinstance(failure, passes):
                raise failure
            error = failure or TaskFailedError(name, "returned, although it must run until the process stops")
            if restart is None:
                raise self._failed(name, error)
            failures = 1 if time.monotonic() - began > WELL_AFTER_S else failures + 1
            delay_s = restart.delay_s(failures)
            RESTARTS.labels(name).inc()
            log.error("task failed, restarting it", task=name, reason=reason_of(error), delay_s=round(delay_s, 3),
                      exc_info=error)  # fmt: skip
            await asyncio.sleep(delay_s)

    def _failed(self, name: str, error: Exception) -> TaskFailedError:
        log.critical("task failed, ending the process", task=name, reason=reason_of(error), exc_info=error)
        self._on_failure()
        if isinstance(error, TaskFailedError):
            return error
        failed = TaskFailedError(name, reason_of(error))
        failed.__cause__ = error
        return failed


async def _failure_of(work: Work) -> Exception | None:
    """Runs it to its end. An unrequested cancellation is a failure: grpc.aio raises one in calls whose
    channel is closed, and a TaskGroup would take the task for finished."""
    task = asyncio.current_task()
    assert task is not None
    try:
        await work()
    except asyncio.CancelledError:
        if task.cancelling():
            raise
        return RuntimeError("cancelled by something other than its supervisor")
    except Exception as error:
        return error
    return None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def reason_of(error: BaseException) -> str:
    """One line for a log: the message, or else the type."""
    if isinstance(error, TaskFailedError):
        return error.reason
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def run(
    serve: Callable[[Supervisor], Awaitable[int | None]],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> int:
    """Runs `serve` on a new event loop until it returns; gives the process's exit code, its own if it returns one.

    loop_factory: uvloop.new_event_loop where a process is on the path of calls; by default asyncio's own loop.
    """
    memory.share_one_arena()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_run(serve))


async def _run(serve: Callable[[Supervisor], Awaitable[int | None]]) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unhandled)
    try:
        async with Supervisor() as supervisor:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, supervisor.stop)
            supervisor._on_failure = functools.partial(loop.call_later, CLEANUP_S, _end_without_cleanup)
            return await serve(supervisor) or OK
    except CannotStartError as error:
        log.error("cannot start", error=str(error))
        return CANNOT_START
    except TaskFailedError as error:
        log.critical("ended because a task failed", task=error.task, reason=error.reason)
        return TASK_FAILED
    except Exception as error:
        log.critical("ended by an unexpected error", reason=reason_of(error), exc_info=error)
        return TASK_FAILED


def _end_without_cleanup() -> None:
    log.critical("cleaning up takes too long, ending without", seconds=CLEANUP_S)
    os._exit(TASK_FAILED)


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what asyncio would print: an exception in a callback, a protocol, or a task that is never awaited."""
    UNHANDLED.inc()
    error = context.get("exception")
    log.error(
        "unhandled error in the event loop",
        message=context.get("message", ""),
        source=str(context.get("future") or context.get("protocol") or context.get("handle") or ""),
        exc_info=error,
    )
