"""Terminal records on their way to the sidecar, until it acknowledges them.

The scheduler's thread adds and acknowledges, the channel's thread sends: a lock guards both. A record may be added with
a delay, while its call may still go on; the scheduler's thread can withdraw it until the delay is over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from agentserving.contract.channel import CallRecord

# Records kept while the sidecar is away; the oldest is dropped first. About 0.5 kB each.
MAX_UNACKED = 65_536

Key = tuple[str, int]


class Outbox:
    """Records by (call id, attempt). `limit` 0: no sidecar will ever ask, nothing is kept."""

    def __init__(self, limit: int = MAX_UNACKED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._unacked: dict[Key, CallRecord] = {}
        # Records with the time at which they become final, microseconds on the plugin's clock.
        self._delayed: dict[Key, tuple[int, CallRecord]] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._unacked)

    @property
    def keeps(self) -> bool:
        """Records are kept for a sidecar."""
        return self._limit > 0

    def add(self, record: CallRecord) -> None:
        """A final record, to be sent until it is acknowledged."""
        with self._lock:
            self._add(record)

    def _add(self, record: CallRecord) -> None:
        if not self._limit:
            return
        self._unacked[record.call_id, record.attempt] = record
        if len(self._unacked) > self._limit:
            del self._unacked[next(iter(self._unacked))]
            self.dropped += 1

    def delay(self, record: CallRecord, until_us: int) -> None:
        """A record that becomes final at `until_us`, unless it is withdrawn before."""
        with self._lock:
            self._delayed[record.call_id, record.attempt] = until_us, record

    def withdraw(self, key: Key) -> bool:
        """True when the record was still delayed: then its call goes on."""
        with self._lock:
            return self._delayed.pop(key, None) is not None

    def take_due(self, now_us: int) -> list[CallRecord]:
        """Delayed records that have become final now."""
        if not self._delayed:
            return []
        with self._lock:
            due = [record for until_us, record in self._delayed.values() if until_us <= now_us]
            for record in due:
                del self._delayed[record.call_id, record.attempt]
                self._add(record)
        return due

    @property
    def delays(self) -> bool:
        """Some record is delayed."""
        return bool(self._delayed)

    def acknowledge(self, keys: Iterable[Key]) -> None:
        """The sidecar has stored these records."""
        with self._lock:
            for call_id, attempt in keys:
                self._unacked.pop((call_id, attempt), None)

    def unacked(self) -> list[CallRecord]:
        """All records that are not acknowledged, oldest first."""
        with self._lock:
            return list(self._unacked.values())
