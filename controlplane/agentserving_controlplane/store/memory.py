"""A store in the process's memory: nothing survives, everything else holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from agentserving_controlplane.store.port import Change, CompactedError, FencedError, Snapshot, Write


class MemoryStore:
    """The Store port over a dict; `history` commits are kept for watchers."""

    def __init__(self, history: int = 10_000) -> None:
        self._items: dict[str, bytes] = {}
        self._changes: list[Change] = []
        self._history = history
        self._revision = 0
        self._epoch = 0
        self._owner: str | None = None
        self._changed = asyncio.Condition()

    async def acquire(self, owner: str, told: Callable[[str], None] = lambda holder: None) -> int:
        """See Store. A claim that nobody gives up is kept for ever."""
        async with self._changed:
            while self._owner not in (None, owner):
                told(str(self._owner))
                await self._changed.wait()
            self._owner = owner
            self._revision += 1
            self._epoch = self._revision
            self._changed.notify_all()
        return self._epoch

    def holds(self, epoch: int) -> bool:
        """See Store."""
        return epoch == self._epoch

    async def hold(self) -> None:
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
        if epoch != self._epoch:
            raise FencedError(f"epoch {epoch} has been superseded by {self._epoch}")
        self._revision += 1
        for write in writes:
            if write.value is None:
                self._items.pop(write.key, None)
            else:
                self._items[write.key] = write.value
        self._changes.append(Change(self._revision, tuple(writes)))
        del self._changes[: -self._history]
        async with self._changed:
            self._changed.notify_all()
        return self._revision

    async def watch(self, after_revision: int, prefix: str = "") -> AsyncIterator[Change]:
        """See Store."""
        seen = after_revision
        while True:
            if len(self._changes) == self._history and seen < self._changes[0].revision - 1:
                raise CompactedError(self._changes[0].revision - 1)
            for change in [c for c in self._changes if c.revision > seen]:
                seen = change.revision
                writes = tuple(w for w in change.writes if w.key.startswith(prefix))
                if writes:
                    yield Change(change.revision, writes)
            async with self._changed:
                if self._revision <= seen or not self._changes or self._changes[-1].revision <= seen:
                    await self._changed.wait()

    async def close(self) -> None:
        """See Store."""
