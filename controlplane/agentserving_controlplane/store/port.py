"""The Store port: what the control plane asks of durable storage.

Keys are relative to the store's own prefix. A store has one writer at a time: `acquire` waits until the caller is that
one, `hold` keeps it so, and every earlier one is fenced, by an epoch that only grows. `memory_store` is for laptops and
tests of the real thing; `etcd_store` is for everything that must survive. tests/controlplane/store holds
the one suite that both pass.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_BATCH_WRITES = 100
MAX_BATCH_BYTES = 1_000_000


class StoreError(Exception):
    """Root of what a store raises.

    StoreError
     +- StoreUnavailableError   no answer within the deadline; the write may or may not have landed
     +- FencedError             the claim is over: another writer has acquired the store, or may
     +- CompactedError          the revision asked for is gone: load again
     +- PendingLimitError       too many writes wait to land
    """


class StoreUnavailableError(StoreError):
    """No answer; safe to repeat, since writes are absolute values under an epoch guard."""


class FencedError(StoreError):
    """Another control plane is, or may be, the writer now; this one must stop."""


class CompactedError(StoreError):
    """History before `compact_revision` is gone."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"history before revision {compact_revision} has been compacted")
        self.compact_revision = compact_revision


class PendingLimitError(StoreError):
    """Backpressure: the store has been slow or away for so long that no more may wait for it."""


@dataclass(frozen=True, slots=True)
class Write:
    """One key's new value; None deletes."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All items under a prefix at one revision."""

    revision: int
    items: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Change:
    """The writes of one commit."""

    revision: int
    writes: tuple[Write, ...]


class Store(Protocol):
    """What every store must do."""

    async def acquire(self, owner: str, told: Callable[[str], None] = lambda holder: None) -> int:
        """Waits until the caller is the only writer. MUST return an epoch greater than all before, and fence their
        commits.

        `told` hears who holds the claim meanwhile. A holder of the same name is our predecessor, and dead: its claim is
        taken at once. StoreUnavailableError.
        """
        ...

    def holds(self, epoch: int) -> bool:
        """False once the claim of an epoch may be another's, as far as the caller's clock tells. Asks nobody."""
        ...

    async def hold(self) -> None:
        """Keeps the claim. MUST NOT return, and MUST raise FencedError before another can have it."""
        ...

    async def resign(self, timeout_s: float = 2.0) -> None:
        """Gives the claim up: the next candidate has it at once. Best effort, within a bound."""
        ...

    async def load(self, prefix: str = "") -> Snapshot:
        """All items under `prefix`, as they were at one revision, however many pages it takes."""
        ...

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        """Lands all writes or none; at most MAX_BATCH_WRITES of MAX_BATCH_BYTES, no key twice. Gives the revision.

        MUST raise FencedError when another has acquired the store since, StoreUnavailableError when unsure.
        """
        ...

    def watch(self, after_revision: int, prefix: str = "") -> AsyncIterator[Change]:
        """Commits after a revision, in order, none missed and none twice, over reconnections. CompactedError."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...
