"""Writes are gathered for 50 ms and land together; nobody on the path of a call waits for them.

A key written twice before it lands is written once, with the last value; keys written together land in one transaction
(gathering.py). A batch that fails is tried again until it lands: values are absolute and guarded by the epoch, so
landing twice is landing once. One batch is in flight at a time, so no key is ever overtaken by its own past.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from agentserving_controlplane.store.gathering import Gathering
from agentserving_controlplane.store.port import FencedError, PendingLimitError, Store, StoreUnavailableError, Write

log = structlog.get_logger()

RETRY_FIRST_S, RETRY_MAX_S = 0.05, 2.0


class GroupCommit:
    """`put` queues a write and gives its number; `durable(number)` waits until all up to it have landed."""

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
        self._gatherings: deque[Gathering] = deque([Gathering()])
        self._in_flight = 0
        self._number = 0
        self._landed = 0
        self._landing = asyncio.Condition()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._hurry = False
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
        return sum(len(gathering.values) for gathering in self._gatherings) + self._in_flight

    @property
    def healthy(self) -> bool:
        """False while the last batch has not landed for want of an answer."""
        return not self.last_error

    @property
    def full(self) -> bool:
        """True when `put` of a new key would be refused."""
        return self.pending >= self._max_pending

    def put(self, key: str, value: bytes | None, *, force: bool = False) -> int:
        """Queues a write. PendingLimitError when too many wait; `force` is for writes that must not be lost."""
        if self.full and key not in self._gatherings[-1].values and not force:
            raise PendingLimitError(f"{self.pending} writes wait for the store: {self.last_error or 'it is slow'}")
        return self.put_together([Write(key, value)])

    def put_together(self, writes: Sequence[Write]) -> int:
        """Queues writes that must land in one transaction, whatever the bound; at most MAX_BATCH_WRITES."""
        if self.fenced is not None:
            raise self.fenced
        self._number += 1
        if not self._gatherings[-1].take(writes, self._number):
            self._gatherings.append(Gathering())
            self._gatherings[-1].take(writes, self._number)
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
        """Returns when every write up to `number` has landed. FencedError when it never will."""
        async with self._landing:
            await self._landing.wait_for(lambda: self._landed >= number or self.fenced is not None)
        if self._landed < number and self.fenced is not None:
            raise self.fenced

    async def fence(self, error: FencedError) -> None:
        """The claim is over: nothing more is written, and those who wait are told."""
        self.fenced = self.fenced or error
        async with self._landing:
            self._landing.notify_all()

    async def flush(self) -> None:
        """Lands everything queued so far."""
        self._hurry = True
        try:
            await self.durable(self._number)
        finally:
            self._hurry = False

    async def close(self, timeout_s: float = 5.0) -> None:
        """Flushes within a bound, then stops."""
        if self._task is None:
            return
        try:
            await asyncio.wait_for(self.flush(), timeout_s)
        except (TimeoutError, FencedError):
            log.error("writes not landed at shutdown", pending=self.pending, error=self.last_error)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self.fenced is None:
            await self._work.wait()
            if not self._hurry:
                await asyncio.sleep(self._interval_s)
            self._work.clear()
            waiting, self._gatherings = self._gatherings, deque([Gathering()])
            self._in_flight = sum(len(gathering.values) for gathering in waiting)
            for gathering in waiting:
                await self._land_all(gathering)

    async def _land_all(self, gathering: Gathering) -> None:
        for batch in gathering.batches():
            if not await self._land(batch):
                break
            self._in_flight -= len(batch)
        async with self._landing:
            if self.fenced is None:
                self._landed = max(self._landed, gathering.through)
            self._landing.notify_all()

    async def _land(self, batch: list[Write]) -> bool:
        delay = RETRY_FIRST_S
        while self.fenced is None:
            try:
                self.revision = await self._store.commit(self._epoch, batch)
                self.commits += 1
                if self.last_error:
                    log.info("store is back", pending=self.pending)
                self.last_error = ""
                return True
            except FencedError as error:
                self.fenced = error
                self._on_fenced(error)
                return False
            except Exception as error:
                # Whatever it is, giving up would lose writes without a word.
                if not isinstance(error, StoreUnavailableError):
                    log.exception("the store failed in an unknown way, writes wait")
                elif not self.last_error:
                    log.warning("store away, writes wait", pending=self.pending, error=str(error))
                self.last_error = str(error) or type(error).__name__
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX_S)
        return False
