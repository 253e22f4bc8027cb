"""The calls of a batch that is in progress: several at a time, each until it has a result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from agentserving_batches import metrics
from agentserving_batches.limits import Limits
from agentserving_batches.lines import body_of
from agentserving_batches.outcomes import Tries, next_try, result_of
from agentserving_batches.store import batch_rows
from agentserving_batches.store.contents import Contents
from agentserving_batches.store.database import Database
from agentserving_batches.values import Batch, Line
from agentserving_batches.work.gateway import Gateway

# Lines that are read from the database at a time.
PAGE = 200


class Slots:
    """Bounds of calls at a time: of each tenant, and of all. The call that has waited longest is next."""

    def __init__(self, limits: Limits) -> None:
        self._of_tenant = limits.tenant_calls
        self._all = asyncio.Semaphore(limits.calls)
        self._tenants: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[asyncio.Semaphore]:
        """The tenant's own bound, which is forgotten when none of its batches is left."""
        own, batches = self._tenants.get(tenant, (asyncio.Semaphore(self._of_tenant), 0))
        self._tenants[tenant] = (own, batches + 1)
        try:
            yield own
        finally:
            own, batches = self._tenants.pop(tenant)
            if batches > 1:
                self._tenants[tenant] = (own, batches - 1)

    async def acquire(self, own: asyncio.Semaphore) -> None:
        """A slot: of the tenant first, so that a tenant that waits for its own takes none of the others'."""
        await own.acquire()
        try:
            await self._all.acquire()
        except BaseException:
            own.release()
            raise

    def release(self, own: asyncio.Semaphore) -> None:
        self._all.release()
        own.release()


class Calls:
    """Makes the calls of all batches."""

    def __init__(self, database: Database, contents: Contents, gateway: Gateway, limits: Limits) -> None:
        self._database, self._contents, self._gateway = database, contents, gateway
        self._slots = Slots(limits)

    async def run(self, batch: Batch) -> None:
        """Returns when every line has a result. A failure of the store ends it, and what is missing is made again."""
        all_begun = asyncio.Event()
        async with self._slots.of(batch.tenant) as own, asyncio.TaskGroup() as group:
            lines = await self._pending(batch, 0)
            while lines:
                following = await self._pending(batch, lines[-1].number)
                for line in lines:
                    await self._slots.acquire(own)
                    if line is lines[-1] and not following:
                        all_begun.set()
                    call = group.create_task(self._call(batch, line, all_begun))
                    call.add_done_callback(lambda _: self._slots.release(own))
                lines = following

    async def _pending(self, batch: Batch, after: int) -> list[Line]:
        return await self._database.run(
            partial(batch_rows.pending, batch_id=batch.batch_id, after=after, limit=PAGE)
        )  # fmt: skip

    async def _call(self, batch: Batch, line: Line, all_begun: asyncio.Event) -> None:
        """`all_begun`: no other line waits for its first call, so each call may be the batch's last one."""
        with metrics.CALLS.track_inprogress():
            text = await asyncio.to_thread(self._contents.read, batch.input_file_id, line.offset, line.size_bytes)
            body, tries = body_of(text), Tries()
            while True:
                answer = await self._gateway.call(batch, body, is_final=all_begun.is_set())
                again = next_try(answer, tries)
                if again is None:
                    break
                metrics.RETRIES.labels(str(answer.status)).inc()
                await asyncio.sleep(again.delay_s)
                tries = again.tries
        result = result_of(answer, batch_id=batch.batch_id, number=line.number, custom_id=line.custom_id)
        if await self._database.run(partial(batch_rows.record, batch_id=batch.batch_id, result=result)):
            metrics.LINES.labels("succeeded" if result.succeeded else "failed").inc()
