"""The Store port: what the control plane requires of durable storage.

Keys are relative to the store's own prefix. A store has one writer at a time, the holder of its lease: `acquire` waits
until the caller is that one, `keep_lease` renews the lease, and the epoch that `acquire` returns fences every earlier
holder. `memory.py` is for laptops and tests; `etcd/` is for everything that must survive the process.
tests/controlplane/store runs one conformance suite against both.

StoreError
 ├── StoreUnavailableError   no answer within the deadline: the write may or may not have landed; retry it
 │    └── StoreFullError     the store's space is used up: writes are refused until space is reclaimed; retry later
 ├── FencedError             the lease is lost: another writer has acquired the store, or may
 │    └── CommitFailedError  this writer itself cannot go on: a batch of its own cannot be committed
 └── RejectedWriteError      the store will never take this batch: a value or a batch is too large, or malformed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

# A batch is packed up to these; etcd's default limits are 128 operations and 1.5 MiB a request.
MAX_BATCH_WRITES = 100
MAX_BATCH_BYTES = 1_000_000
# A set of rows that must land together may be larger than what is packed, up to this.
MAX_COMMIT_BYTES = 1_500_000


class StoreError(Exception):
    """Root of what a store raises: the change is not known to be durable."""


class StoreUnavailableError(StoreError):
    """No answer. Repeating a commit is safe: values are absolute and guarded by the epoch."""


class StoreFullError(StoreUnavailableError):
    """Writes are refused for want of space; the message says what reclaims it."""


class FencedError(StoreError):
    """Another control plane is the writer now, or may be; this one must stop."""


class CommitFailedError(FencedError):
    """A batch can never be committed. The writer must stop, as if another had taken its place."""


class RejectedWriteError(StoreError):
    """The batch is invalid, and repeating it is useless."""


class Write(msgspec.Struct, frozen=True, gc=False):
    """One key's new value; None deletes it."""

    key: str
    value: bytes | None

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key.encode()) + len(self.value or b"")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All items under a prefix at one revision."""

    revision: int
    items: Mapping[str, bytes]


def check_batch(writes: Sequence[Write]) -> None:
    """RejectedWriteError for a batch that no store has to take: too many writes, too many bytes, a key twice."""
    if len(writes) > MAX_BATCH_WRITES:
        raise RejectedWriteError(f"{len(writes)} writes in one batch; at most {MAX_BATCH_WRITES} are possible")
    size = sum(write.size for write in writes)
    if size > MAX_COMMIT_BYTES:
        largest = max(writes, key=lambda write: write.size)
        raise RejectedWriteError(
            f"{size} bytes in one batch, of which {largest.size} are {largest.key!r}; at most {MAX_COMMIT_BYTES} are"
            " possible"
        )
    if len({write.key for write in writes}) < len(writes):
        raise RejectedWriteError("a key occurs twice in one batch")


def ignore_holder(holder: str) -> None:
    """The default of `on_holder`: who leads does not matter."""


class Store(Protocol):
    """What every store must do. All methods may raise StoreUnavailableError."""

    async def acquire(self, owner: str, on_holder: Callable[[str], None] = ignore_holder) -> int:
        """Waits until the caller holds the lease; returns its epoch. MUST be greater than every epoch before, and MUST
        fence commits of those.

        `on_holder` is called with the name of the current holder while the caller waits. A holder with the caller's own
        name is its crashed predecessor: its lease is taken over immediately.
        """
        ...

    def holds(self, epoch: int) -> bool:
        """False once another may hold the lease, judged by the caller's own clock. Does no I/O."""
        ...

    async def keep_lease(self) -> None:
        """Renews the lease. MUST NOT return, and MUST raise FencedError before another can hold it."""
        ...

    async def resign(self, timeout_s: float = 2.0) -> None:
        """Gives the lease up, so that the next candidate need not wait for it to expire. Best effort, never raises."""
        ...

    async def load(self, prefix: str = "") -> Snapshot:
        """All items under `prefix`, in the order of keys, as they were at one revision."""
        ...

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        """Lands all writes or none; returns the revision. MUST raise FencedError when another has acquired the store
        since, StoreUnavailableError when it is unknown whether they landed, RejectedWriteError as `check_batch` does.
        """
        ...

    async def tend(self) -> float:
        """Frees space that nothing needs, before it is used up; returns the share of the space that is in use, 0 when
        there is no bound. To be called every few seconds by the holder.
        """
        ...

    async def close(self) -> None: ...
