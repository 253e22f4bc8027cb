"""Writes are collected for 50 ms and land together, off the path of calls.

A key written twice before it lands is written once, with the last value; keys written together land in one transaction
(write_buffer.py). A batch that gets no answer is repeated until it lands: values are absolute and guarded by the epoch,
so landing twice is the same as landing once. One batch is in flight at a time, so an old value never overwrites a newer
one.

Any other failure ends the leadership: a rejected batch would be rejected for ever and hold up everything behind it. The
next leader starts from what has landed, and engines report again what has not.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from agentserving.transport.backoff import Backoff

from agentserving_controlplane.store.port import (
    CommitFailedError,
    FencedError,
    Store,
    StoreUnavailableError,
    Write,
)
from agentserving_controlplane.store.write_buffer import AnyWrite, WriteBuffer

log = structlog.get_logger()

RETRIES = Backoff(first_s=0.05, max_s=2.0)


class GroupCommit:
    """`put_together` queues writes and returns a number; `durable(number)` waits until all up to it have landed.

    Everything runs on one event loop. `start` creates the only task; when that ends for any reason but `close`,
    `on_fenced` is called with the reason, and waiters get it as well.
    """

    def __init__(
        self,
        store: Store,
        epoch: int,
        *,
        interval_s: float = 0.05,
        max_pending: int = 200_000,
        on_fenced: Callable[[FencedError], None] = lambda error: None,
    ) -> None:
        self._store, self._epoch, self._interval_s, self._max_pending = store, epoch, interval_s, max_pending
        self._on_fenced = on_fenced
        # Oldest first; only the last one takes more.
        self._buffers: deque[WriteBuffer] = deque([WriteBuffer()])
        self._in_flight = 0
        self._number = 0
        self._landed = 0
        # Who waits for which number: a heap, so that a commit costs those whose writes have landed. The middle number
        # orders waiters for the same one.
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waits = 0
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_flushing = False
        self.fenced: FencedError | None = None
        self.last_error = ""
        self.revision = 0
        self.commits = 0

    def start(self) -> None:
        """Begins to land writes."""
        self._task = asyncio.create_task(self._run(), name="group-commit")

    @property
    def pending(self) -> int:
        """Writes that have not landed."""
        return sum(len(buffer) for buffer in self._buffers) + self._in_flight

    @property
    def healthy(self) -> bool:
        """False while the store does not take writes."""
        return not self.last_error

    @property
    def full(self) -> bool:
        """True when so many writes wait that the caller must not accept new work."""
        return self.pending >= self._max_pending

    def put_together(self, writes: Sequence[AnyWrite]) -> int:
        """Queues writes that must land in one transaction; at most MAX_BATCH_WRITES. FencedError after the end."""
        if self.fenced is not None:
            raise self.fenced
        self._number += 1
        if not self._buffers[-1].add(writes, self._number):
            self._buffers.append(WriteBuffer())
            self._buffers[-1].add(writes, self._number)
        self._work.set()
        return self._number

    @property
    def number(self) -> int:
        """Number of the newest write."""
        return self._number

    def has_landed(self, number: int) -> bool:
        """True when every write up to `number` has."""
        return self._landed >= number

    async def durable(self, number: int) -> None:
        """Returns when every write up to `number` has landed. FencedError when that will never happen."""
        if self._landed < number and self.fenced is None:
            landing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waits += 1
            heapq.heappush(self._waiters, (number, self._waits, landing))
            await landing
        if self._landed < number and self.fenced is not None:
            raise self.fenced

    async def fence(self, error: FencedError) -> None:
        """Ends it: nothing more is written, and `durable` raises."""
        self.fenced = self.fenced or error
        self._wake(self._number)

    async def flush(self) -> None:
        """Lands everything queued so far, without the interval."""
        self._is_flushing = True
        try:
            await self.durable(self._number)
        finally:
            self._is_flushing = False

    async def close(self, timeout_s: float = 5.0) -> None:
        """Flushes within a bound, then stops."""
        if self._task is None:
            return
        try:
            await asyncio.wait_for(self.flush(), timeout_s)
        except (TimeoutError, FencedError):
            log.error("writes have not landed at shutdown", pending=self.pending, error=self.last_error)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Lands what is queued, until it is fenced. Whatever else ends it fences it."""
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._land_forever()
        except FencedError as error:
            await self._end(error)
        except asyncio.CancelledError:
            if task.cancelling():
                raise
            await self._end(CommitFailedError("the commit loop was cancelled by a library"))
        except Exception as error:
            log.critical("a batch cannot be committed, this control plane stops leading", error=str(error),
                         pending=self.pending, exc_info=error)  # fmt: skip
            self.last_error = str(error) or type(error).__name__
            fenced = CommitFailedError(f"a batch cannot be committed: {type(error).__name__}: {error}")
            fenced.__cause__ = error
            await self._end(fenced)

    async def _end(self, error: FencedError) -> None:
        await self.fence(error)
        self._on_fenced(error)

    async def _land_forever(self) -> None:
        while self.fenced is None:
            await self._work.wait()
            if not self._is_flushing:
                await asyncio.sleep(self._interval_s)
            self._work.clear()
            buffers, self._buffers = self._buffers, deque([WriteBuffer()])
            self._in_flight = sum(len(buffer) for buffer in buffers)
            # Encoded now, all of them: from here on rows change for the next buffer.
            for through, batches in [(buffer.through, buffer.batches()) for buffer in buffers]:
                for batch in batches:
                    await self._land(batch)
                    self._in_flight -= len(batch)
                self._landed = max(self._landed, through)
                self._wake(self._landed)

    def _wake(self, through: int) -> None:
        """Wakes the tasks that wait for a number up to `through`."""
        while self._waiters and self._waiters[0][0] <= through:
            landing = heapq.heappop(self._waiters)[2]
            if not landing.done():
                landing.set_result(None)

    async def _land(self, batch: list[Write]) -> None:
        """Returns when the batch has landed. FencedError when another writer, or `fence`, ends the attempts."""
        failures = 0
        while self.fenced is None:
            try:
                self.revision = await self._store.commit(self._epoch, batch)
            except StoreUnavailableError as error:
                if not self.last_error:
                    log.warning("store does not take writes, they wait", pending=self.pending, error=str(error))
                self.last_error = str(error)
            else:
                self.commits += 1
                if self.last_error:
                    log.info("store takes writes again", pending=self.pending)
                self.last_error = ""
                return
            failures += 1
            await asyncio.sleep(RETRIES.delay_s(failures))
        raise self.fenced
