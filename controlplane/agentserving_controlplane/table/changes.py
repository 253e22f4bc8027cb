"""What has changed in the table and is not yet on its way to the store, in groups that must land together. Pure.

A row and its root's row that changed by one event form a group with the chunks of calls that this event changed: the
store shows all of them or none. Progress of a call changes its chunk alone, because nothing else depends on it.

A group holds one event, so it fits into one transaction however many events precede `take`: `begin` seals the groups
of earlier events with their present values. Groups of one tree are taken in the order of their events, so a crash
between two of them leaves the tree in the store as it was between two events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from agentserving.contract.ids import ProgramKey

from agentserving_controlplane.table.call_chunks import ROW


class Item(NamedTuple):
    """One value of the store: a program's row (`place` is ROW), or one chunk of its calls."""

    key: ProgramKey
    place: int
    # Of a sealed item: its value (None deletes it), in a tuple. Others have the value that the table has.
    sealed: tuple[bytes | None] | None = None


class Changes:
    """Changed items since the last `take`."""

    def __init__(self, encode: Callable[[Item], bytes | None]) -> None:
        """`encode` gives the present value of an item."""
        self._encode = encode
        self._rows: dict[ProgramKey, None] = {}
        # Row -> root's row, when they changed together.
        self._roots: dict[ProgramKey, ProgramKey] = {}
        # Chunks that changed together with their row, and those that changed alone.
        self._with_row: dict[ProgramKey, set[int]] = {}
        self._alone: dict[Item, None] = {}
        # Groups of earlier events, oldest first.
        self._sealed: list[list[Item]] = []

    def begin(self) -> None:
        """An event begins, which may change several items: seals the groups of earlier ones."""
        if not (self._roots or self._with_row):
            return
        for group in self._groups():
            if len(group) == 1:
                continue
            self._sealed.append([item._replace(sealed=(self._encode(item),)) for item in group])
            for item in group:
                self._rows.pop(item.key, None)
                if item.place != ROW:
                    self._alone.pop(item, None)
        self._roots.clear()
        self._with_row.clear()

    def row(self, key: ProgramKey, root: ProgramKey | None = None) -> None:
        """A row has changed; together with its root's row when `root` is given."""
        self._rows[key] = None
        if root is not None and root != key:
            self._rows[root] = None
            self._roots[key] = root

    def call(self, key: ProgramKey, place: int) -> None:
        """A call has begun or ended: its place changes together with its program's row."""
        self._rows[key] = None
        if place != ROW:
            self._with_row.setdefault(key, set()).add(place)

    def progress(self, key: ProgramKey, place: int) -> None:
        """Counters of a call in flight have changed."""
        if place == ROW:
            self._rows[key] = None
        else:
            self._alone[Item(key, place)] = None

    def forget(self, key: ProgramKey) -> None:
        """A row without calls has been removed from the table."""
        self._rows.pop(key, None)
        self._roots.pop(key, None)
        removed = Item(key, ROW)
        self._sealed = [[item for item in group if item[:2] != removed[:2]] for group in self._sealed]

    def take(self) -> list[list[Item]]:
        """The groups of changed items, which are then forgotten."""
        if not (self._rows or self._alone or self._sealed):
            return []
        if len(self._rows) == 1 and not (self._roots or self._with_row or self._alone or self._sealed):
            # Nearly always.
            return [[Item(self._rows.popitem()[0], ROW)]]
        taken = [group for group in self._sealed if group] if self._sealed else []
        taken += self._groups()
        taken += [[item] for item in self._alone if item.place not in self._with_row.get(item.key, ())]
        self._rows.clear()
        self._roots.clear()
        self._with_row.clear()
        self._alone.clear()
        self._sealed.clear()
        return taken

    def _groups(self) -> list[list[Item]]:
        groups: dict[ProgramKey, list[Item]] = {}
        for key in self._rows:
            group = groups.setdefault(self._roots.get(key, key), [])
            group.append(Item(key, ROW))
            if key in self._with_row:
                group += [Item(key, place) for place in sorted(self._with_row[key])]
        return list(groups.values())
