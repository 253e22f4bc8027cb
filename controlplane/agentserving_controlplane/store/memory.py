"""A store in the process's memory: nothing survives the process, every other promise of the port holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentserving_controlplane.store.port import (
    FencedError,
    Snapshot,
    StoreFullError,
    Write,
    check_batch,
    ignore_holder,
)


class MemoryStore:
    """The Store port over a dict. `max_bytes` bounds keys and values together; by default nothing does."""

    def __init__(self, max_bytes: int | None = None) -> None:
        self._items: dict[str, bytes] = {}
        self._size, self._max_bytes = 0, max_bytes
        self._revision = 0
        self._epoch = 0
        self._owner: str | None = None
        self._changed = asyncio.Condition()

    async def acquire(self, owner: str, on_holder: Callable[[str], None] = ignore_holder) -> int:
        """See Store. A lease in memory does not expire: it lasts until its holder resigns."""
        async with self._changed:
            while self._owner not in (None, owner):
                on_holder(str(self._owner))
                await self._changed.wait()
            self._owner = owner
            self._revision += 1
            self._epoch = self._revision
            self._changed.notify_all()
        return self._epoch

    def holds(self, epoch: int) -> bool:
        """See Store."""
        return epoch == self._epoch

    async def keep_lease(self) -> None:
        """See Store."""
        epoch = self._epoch
        async with self._changed:
            await self._changed.wait_for(lambda: epoch != self._epoch)
        raise FencedError(f"epoch {epoch} is over")

    async def resign(self, timeout_s: float = 2.0) -> None:
        """See Store."""
        async with self._changed:
            self._owner, self._epoch = None, 0
            self._changed.notify_all()

    async def load(self, prefix: str = "") -> Snapshot:
        """See Store."""
        return Snapshot(self._revision, {k: v for k, v in sorted(self._items.items()) if k.startswith(prefix)})

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        """See Store."""
        check_batch(writes)
        if epoch != self._epoch:
            raise FencedError(f"epoch {epoch} has been superseded by {self._epoch}")
        grown = self._size + sum(self._growth(write) for write in writes)
        if self._max_bytes is not None and grown > max(self._max_bytes, self._size):
            raise StoreFullError(f"{grown} bytes exceed the store's {self._max_bytes}")
        self._size = grown
        self._revision += 1
        for write in writes:
            if write.value is None:
                self._items.pop(write.key, None)
            else:
                self._items[write.key] = write.value
        return self._revision

    def _growth(self, write: Write) -> int:
        old = self._items.get(write.key)
        before = 0 if old is None else Write(write.key, old).size
        return (0 if write.value is None else write.size) - before

    async def tend(self) -> float:
        """See Store."""
        return self._size / self._max_bytes if self._max_bytes else 0.0

    async def close(self) -> None:
        """See Store."""
