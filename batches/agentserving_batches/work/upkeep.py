"""What has expired is deleted, and what is there is counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from agentserving_batches import metrics
from agentserving_batches.limits import Limits
from agentserving_batches.store import batch_rows, file_rows
from agentserving_batches.store.contents import Contents
from agentserving_batches.store.database import Database
from agentserving_batches.values import Status

# Metrics are read about as often; few rows expire meanwhile.
EVERY_S = 15.0
PAGE = 200


class Upkeep:
    """`run` is its supervised task. `now`: Unix time."""

    def __init__(
        self, database: Database, contents: Contents, limits: Limits, now: Callable[[], float] = time.time
    ) -> None:
        self._database, self._contents, self._limits, self._now = database, contents, limits, now

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def clear(self) -> None:
        """Deletes files without a row: uploads and outputs that an earlier process did not commit. To be called before
        anything is served: later such a file may be about to get its row."""
        await asyncio.to_thread(self._contents.clear_incoming)
        names = await asyncio.to_thread(self._contents.names)
        for at in range(0, len(names), PAGE):
            some = names[at : at + PAGE]
            known = await self._database.run(partial(file_rows.known, file_ids=some))
            for name in set(some) - known:
                self._contents.delete(name)

    async def look(self) -> None:
        """Deletes what has expired, and counts what is left."""
        now_s = int(self._now())
        while ids := await self._database.run(partial(file_rows.expired, now_s=now_s, limit=PAGE)):
            for file_id in ids:
                # The row first: a row without its content would be an answer of 500.
                await self._database.run(partial(file_rows.delete, file_id=file_id))
                self._contents.delete(file_id)
        before_s = now_s - self._limits.keep_s
        await self._database.run(partial(batch_rows.delete_ended, created_before_s=before_s))
        counts = await self._database.run(batch_rows.count_by_status)
        for status in Status:
            metrics.BATCHES.labels(status.value).set(counts.get(status, 0))
        files, size_bytes = await self._database.run(file_rows.total)
        metrics.FILES.set(files)
        metrics.FILE_BYTES.set(size_bytes)
        metrics.FREE_BYTES.set(await asyncio.to_thread(self._contents.free_bytes))
