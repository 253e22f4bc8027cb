"""One task a batch, from its creation, or the start of the process, to its end."""

from __future__ import annotations

import asyncio

import structlog
from agentserving.transport.backoff import Backoff
from agentserving_process.supervision import reason_of

from agentserving_batches.store import batch_rows
from agentserving_batches.store.database import Database
from agentserving_batches.work.stages import Stages

log = structlog.get_logger()

# A batch that fails for a reason of ours (a full disk) goes on later; the others are not affected.
RESTART = Backoff(first_s=0.5, max_s=60.0)


class Runner:
    """`run` is its supervised task."""

    def __init__(self, database: Database, stages: Stages) -> None:
        self._database, self._stages = database, stages
        self._new: asyncio.Queue[str] = asyncio.Queue()
        self._cancelled: dict[str, asyncio.Event] = {}
        self.is_running = False

    async def run(self) -> None:
        """Drives the batches that had not ended, and new ones, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for batch_id in await self._database.run(batch_rows.active_ids):
                self._start(group, batch_id)
            self.is_running = True
            while True:
                self._start(group, await self._new.get())

    def created(self, batch_id: str) -> None:
        """A batch with a committed row."""
        self._new.put_nowait(batch_id)

    def cancelled(self, batch_id: str) -> None:
        """A batch that was moved to CANCELLING: its calls end."""
        if batch_id in self._cancelled:
            self._cancelled[batch_id].set()

    def _start(self, group: asyncio.TaskGroup, batch_id: str) -> None:
        # It may have been created before the first look at the rows was over.
        if batch_id not in self._cancelled:
            self._cancelled[batch_id] = asyncio.Event()
            group.create_task(self._drive(batch_id), name=batch_id)

    async def _drive(self, batch_id: str) -> None:
        failures = 0
        try:
            while True:
                try:
                    await self._stages.drive(batch_id, self._cancelled[batch_id])
                except Exception as error:
                    failures += 1
                    delay_s = RESTART.delay_s(failures)
                    log.error("a batch cannot go on for now", batch=batch_id, reason=reason_of(error),
                              delay_s=round(delay_s, 1), exc_info=error)  # fmt: skip
                    await asyncio.sleep(delay_s)
                else:
                    return
        finally:
            del self._cancelled[batch_id]
