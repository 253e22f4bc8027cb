"""What streaming methods share: tasks that end together, and writes that do not overlap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import structlog

from agentserving_controlplane.errors import OverloadedError

# Streams of clients that wait for changes, together with those of gateways, which may be more: each change wakes all.
MAX_WATCHERS = 1000
log = structlog.get_logger()

LAST_WRITE_S = 1.0


class _StreamEnded(Exception):
    """One of the tasks of a stream returned: the others are to be cancelled."""


async def until_first_end(**tasks: Coroutine[Any, Any, None]) -> None:
    """Runs named tasks until one of them ends; raises its exception.

    An exception that is no gRPC error and not one of ours is a bug: it is logged with the task's name, and it ends the
    stream, so that the client reconnects. No task is left running or fails unseen.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for name, task in tasks.items():
                group.create_task(_ending_the_group(task), name=name)
    except BaseExceptionGroup as errors:
        failed = errors.split(_StreamEnded)[1]
        if failed is not None:
            raise _leaves(failed)[0] from None


async def _ending_the_group(task: Coroutine[Any, Any, None]) -> None:
    await task
    raise _StreamEnded


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


@contextlib.contextmanager
def woken_by(listeners: set[Callable[[], None]], at_most: int | None = None) -> Iterator[asyncio.Event]:
    """An event that is set after each change, while the context lasts.

    OverloadedError when there are `at_most` listeners.
    """
    if at_most is not None and len(listeners) >= at_most:
        raise OverloadedError(
            "TOO_MANY_WATCHES", f"{len(listeners)} streams wait for changes, of at most {at_most}", retry_after_s=5.0
        )
    wake = asyncio.Event()
    listeners.add(wake.set)
    try:
        yield wake
    finally:
        listeners.discard(wake.set)


def _seen(write: asyncio.Task[None]) -> None:
    """A write fails when its client goes away; if its task was cancelled by then, no one else asks for the error."""
    if not write.cancelled():
        write.exception()


class Outlet:
    """The writing side of a stream. grpc.aio allows neither a second write nor a status while a write is under way."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        self._context = context
        self._writing = asyncio.Lock()
        # Written to its end whatever becomes of the task that asked for it.
        self._last: asyncio.Task[None] | None = None

    async def write(self, message: object) -> None:
        """Waits while the client does not read. Cancelled, it leaves its write to `close`.

        gRPC goes on with a write whose task was cancelled, and a status sent meanwhile fails: the client would wait for
        its stream's end for ever.
        """
        async with self._writing:
            self._last = asyncio.ensure_future(self._context.write(message))
            self._last.add_done_callback(_seen)
            await asyncio.shield(self._last)

    async def close(self) -> None:
        """Blocks further writes before a status is sent; gives up waiting for a client that does not read."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE_S):
                await self._writing.acquire()
                if self._last is not None:
                    await asyncio.wait([self._last])
