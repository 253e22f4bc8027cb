"""Puts terminal records on disk before the plugin may forget them, off the event loop and several at a time.

    plugin -> `take` -> journal (fsync) -> on_recorded: acknowledge to the plugin, report to the leader
    leader acknowledges -> `acknowledge` -> out of the journal

While the disk takes nothing, records wait here and in the plugin, which forgets only acknowledged ones; on_deferred
gets them once, so that the leader learns of the calls' ends in the meantime. They are tried again every RETRY_S.

Concurrency: `run` is one task and the only user of the journal's writing methods, which block and run in an OS thread
of their own. Everything else is on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from agentserving.contract.channel import CallRecord
from prometheus_client import Counter, Gauge

from agentserving_sidecar.journal import Entry, Journal, JournalFullError

log = structlog.get_logger()

# Between writes: records that come within this time share an fsync, an acknowledgement and a report, which together
# cost more than all else that a sidecar does for a call. The first one after a pause does not wait. As the leader's
# group commit.
GATHER_S = 0.05
RETRY_S = 1.0
# Records per transaction: bounds the journal's write-ahead log.
MAX_BATCH = 200
# Records that wait while the disk is full. The plugin keeps those beyond, and sends them when it is connected again.
MAX_WAITING = 20_000

FAILURES = Counter("agentserving_sidecar_journal_write_failures", "attempts to write to the journal that failed")
WAITING = Gauge("agentserving_sidecar_unrecorded_reports", "terminal reports that wait for the journal's disk")

Records = list[tuple[str, CallRecord]]


class Recorder:
    """`on_recorded` gets entries that are on disk, in order; `on_deferred` records that are not yet, once each.

    `on_overflow` is called when there is room again after records had to be dropped here.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        on_recorded: Callable[[list[Entry]], None],
        on_deferred: Callable[[Records], None],
        on_overflow: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._on_recorded, self._on_deferred, self._on_overflow = on_recorded, on_deferred, on_overflow
        # By call and attempt: after a reconnection the plugin sends again what was not acknowledged.
        self._waiting: dict[tuple[str, str, int], CallRecord] = {}
        self._deferred: set[tuple[str, str, int]] = set()
        self._after: list[Callable[[], None]] = []
        self._acked = self._forgotten = 0
        self._overflowed = False
        self._failing = ""
        self._busy = False
        self._wake = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Nothing waits for the disk."""
        return not (self._waiting or self._busy)

    def take(self, boot_id: str, record: CallRecord) -> None:
        """A terminal record of the engine."""
        if len(self._waiting) >= MAX_WAITING:
            self._overflowed = True
            return
        self._waiting[(boot_id, record.call_id, record.attempt)] = record
        self._wake.set()

    def acknowledge(self, seq: int) -> None:
        """The leader has stored every report up to this seq."""
        # A number that was never given out must not cover later records.
        self._acked = max(self._acked, min(seq, self._journal.next_seq - 1))
        self._wake.set()

    def after_attempt(self, action: Callable[[], None]) -> None:
        """Calls `action` once every record taken so far has been recorded or deferred; now when there is none."""
        if self.is_idle:
            action()
        else:
            self._after.append(action)

    async def run(self) -> None:
        """Records until cancelled."""
        last_s = -GATHER_S
        with ThreadPoolExecutor(1, thread_name_prefix="journal") as thread:
            while True:
                await self._wake.wait()
                await asyncio.sleep(RETRY_S if self._failing else max(0.0, last_s + GATHER_S - time.monotonic()))
                self._wake.clear()
                last_s = time.monotonic()
                await self._attempt(thread)

    async def _attempt(self, thread: ThreadPoolExecutor) -> None:
        """One pass: acknowledgements first, since they make room."""
        loop = asyncio.get_running_loop()
        self._busy, error = True, ""
        try:
            acked = self._acked
            if acked > self._forgotten:
                try:
                    await loop.run_in_executor(thread, self._journal.ack, acked)
                    self._forgotten = acked
                except OSError as failure:
                    error = str(failure)
            while self._waiting and not error:
                keys = list(self._waiting)[:MAX_BATCH]
                batch = [(key[0], self._waiting[key]) for key in keys]
                try:
                    entries = await loop.run_in_executor(thread, self._journal.append_all, batch)
                except (JournalFullError, OSError) as failure:
                    error = str(failure)
                    break
                for key in keys:
                    del self._waiting[key]
                    self._deferred.discard(key)
                self._on_recorded(entries)
        finally:
            self._busy = False
        self._finish(error)

    def _finish(self, error: str) -> None:
        WAITING.set(len(self._waiting))
        if error:
            FAILURES.inc()
            if not self._failing:
                log.error("the journal cannot be written; trying again", error=error, waiting=len(self._waiting))
            late = [key for key in self._waiting if key not in self._deferred]
            self._deferred.update(late)
            self._on_deferred([(key[0], self._waiting[key]) for key in late])
            self._wake.set()
        elif self._failing:
            log.info("the journal is written again")
        self._failing = error
        after, self._after = self._after, []
        for action in after:
            action()
        if not error and self._overflowed:
            self._overflowed = False
            self._on_overflow()
