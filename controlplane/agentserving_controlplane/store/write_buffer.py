"""Writes that wait to land, in groups that must land whole.

Keys written together form a group, and a key in two groups joins them: a group lands in one transaction, so no state of
the store ever shows a part of it. Of each key only the last value is kept, which is consistent because its whole group
lands in one piece. A group that would exceed one transaction is closed with the values that it has; later writes go to
another buffer (`add` returns False), which lands after this one.

Values may be encoded late (`LateWrite`): a row that changes ten times before it lands is then encoded once. That is
possible only for keys that are in no group. A group may have to be closed with its old values when it is full, and once
a row has changed those cannot be encoded any more. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from agentserving_controlplane.store.port import MAX_BATCH_BYTES, MAX_BATCH_WRITES, Write


class LateWrite(msgspec.Struct, frozen=True, gc=False):
    """A key whose value is encoded when it lands, or earlier. `encode` must give the last value that was added: a
    caller changes the object behind it and adds the write without letting other tasks run in between."""

    key: str
    encode: Callable[[], bytes | None]


AnyWrite = Write | LateWrite


@dataclass(slots=True)
class _Group:
    keys: list[str] = field(default_factory=list)
    size: int = 0


@dataclass(slots=True)
class _Single:
    """A key in no group, and the number of the first write of it in this buffer."""

    write: AnyWrite
    first_number: int


class WriteBuffer:
    """Values by key, and the groups of keys."""

    def __init__(self) -> None:
        self._singles: dict[str, _Single] = {}
        self._values: dict[str, Write] = {}
        self._groups: dict[str, _Group] = {}
        # All writes up to this number have landed once this buffer and the earlier ones have.
        self.through = 0

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._singles) + len(self._values)

    def add(self, writes: Sequence[AnyWrite], number: int) -> bool:
        """Adds writes that must land together. Returns False when they, with all groups that they join, would not fit
        into one transaction: then the buffer is closed."""
        if len(writes) == 1 and writes[0].key not in self._groups:
            (write,) = writes
            known = self._singles.get(write.key)
            if known is None:
                self._singles[write.key] = _Single(write, number)
            else:
                known.write = write
            self.through = number
            return True
        return self._add_group([_encoded(write) for write in writes], number)

    def _add_group(self, writes: Sequence[Write], number: int) -> bool:
        joined: dict[int, _Group] = {}
        new: list[Write] = []
        size = 0
        for write in writes:
            size += _size(write)
            group = self._groups.get(write.key)
            if group is None:
                new.append(write)
            else:
                size -= _size(self._values[write.key])
                joined[id(group)] = group
        count = len(new)
        for group in joined.values():
            count += len(group.keys)
            size += group.size
        if joined and (count > MAX_BATCH_WRITES or size > MAX_BATCH_BYTES):
            self._close(new)
            return False
        self._join(list(joined.values()), new, size)
        for write in writes:
            self._values[write.key] = write
        self.through = number
        return True

    def _join(self, joined: list[_Group], new: Sequence[Write], size: int) -> None:
        merged = max(joined, key=lambda group: len(group.keys)) if joined else _Group()
        for group in joined if len(joined) > 1 else ():
            if group is not merged:
                merged.keys += group.keys
                self._groups.update(dict.fromkeys(group.keys, merged))
        for write in new:
            self._singles.pop(write.key, None)
            merged.keys.append(write.key)
            self._groups[write.key] = merged
        merged.size = size

    def _close(self, changed: Sequence[Write]) -> None:
        """Encodes what is still late: the next buffer will change these rows. The value of a changed single key is in
        no transaction with others, so the next buffer's replaces it; its earlier writes land with that buffer."""
        for write in changed:
            single = self._singles.pop(write.key, None)
            if single is not None:
                self.through = min(self.through, single.first_number - 1)
        for single in self._singles.values():
            single.write = _encoded(single.write)

    def batches(self) -> list[list[Write]]:
        """Everything, packed into as few transactions as possible without dividing a group."""
        groups = [([self._values[key] for key in group.keys], group.size) for group in self._distinct_groups()]
        for single in self._singles.values():
            write = _encoded(single.write)
            groups.append(([write], _size(write)))
        batches: list[list[Write]] = []
        free_writes = free_bytes = 0
        for writes, size in groups:
            if not batches or len(writes) > free_writes or size > free_bytes:
                batches.append([])
                free_writes, free_bytes = MAX_BATCH_WRITES, MAX_BATCH_BYTES
            batches[-1] += writes
            free_writes -= len(writes)
            free_bytes -= size
        return batches

    def _distinct_groups(self) -> list[_Group]:
        return list({id(group): group for group in self._groups.values()}.values())


def _size(write: Write) -> int:
    """Bytes, counting a character of a key as one: what is packed is bounded well below what a store takes."""
    return len(write.key) + (len(write.value) if write.value is not None else 0)


def _encoded(write: AnyWrite) -> Write:
    return write if isinstance(write, Write) else Write(write.key, write.encode())
