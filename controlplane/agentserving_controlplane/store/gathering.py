"""Writes that wait to land, in parts that must land whole.

A part is a set of keys tied together: whoever writes several keys at once ties them, and a key that is in two such sets
ties the sets. Only the last value of a key is kept, which is consistent because the whole part lands at once. A part
that would no longer fit into one transaction is left as it is, values and all; what comes then is gathered anew
(`take` answers False) and lands after it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentserving_controlplane.store.port import MAX_BATCH_BYTES, MAX_BATCH_WRITES, Write


@dataclass(slots=True)
class _Part:
    keys: list[str] = field(default_factory=list)
    size: int = 0


def _size(key: str, value: bytes | None) -> int:
    return len(key) + len(value or b"")


class Gathering:
    """Values by key, and which keys are tied."""

    def __init__(self) -> None:
        self.values: dict[str, bytes | None] = {}
        self._parts: dict[str, _Part] = {}
        # Number of the newest write.
        self.through = 0

    def take(self, writes: Sequence[Write], number: int) -> bool:
        """Takes writes that must land together; False when they, and all that they are tied to, would not fit."""
        parts = {id(self._parts[w.key]): self._parts[w.key] for w in writes if w.key in self._parts}
        new = [w for w in writes if w.key not in self._parts]
        size = sum(part.size for part in parts.values()) + sum(_size(w.key, w.value) for w in writes)
        size -= sum(_size(w.key, self.values[w.key]) for w in writes if w.key in self.values)
        count = sum(len(part.keys) for part in parts.values()) + len(new)
        if parts and (count > MAX_BATCH_WRITES or size > MAX_BATCH_BYTES):
            return False
        merged = max(parts.values(), key=lambda part: len(part.keys), default=_Part())
        for part in parts.values():
            if part is not merged:
                merged.keys += part.keys
                self._parts.update(dict.fromkeys(part.keys, merged))
        for write in new:
            merged.keys.append(write.key)
            self._parts[write.key] = merged
        merged.size = size
        self.values.update((w.key, w.value) for w in writes)
        self.through = number
        return True

    def batches(self) -> list[list[Write]]:
        """Everything, packed into as few transactions as there must be; no part is cut."""
        batches: list[list[Write]] = []
        room_writes = room_bytes = 0
        for part in {id(part): part for part in self._parts.values()}.values():
            if not batches or len(part.keys) > room_writes or part.size > room_bytes:
                batches.append([])
                room_writes, room_bytes = MAX_BATCH_WRITES, MAX_BATCH_BYTES
            batches[-1] += [Write(key, self.values[key]) for key in part.keys]
            room_writes -= len(part.keys)
            room_bytes -= part.size
        return batches
