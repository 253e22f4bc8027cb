"""Keys and values of the table's items in the store. Pure.

An item is a program's row (place ROW), a chunk of its calls (1, 2, ...), or a list of its late calls (-1, -2, ...).
"""

from __future__ import annotations

from agentserving_controlplane.table.call_chunks import ROW
from agentserving_controlplane.table.changes import Item
from agentserving_controlplane.table.late_charges import LateCharges
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.rows import chunk_key, encode, encode_calls, late_key, row_key


def late_place(number: int) -> int:
    """The place of a list of late calls."""
    return -1 - number


def store_key(item: Item) -> str:
    tenant, program_id = item.key
    if item.place == ROW:
        return row_key(tenant, program_id)
    if item.place < ROW:
        return late_key(tenant, program_id, late_place(item.place))
    return chunk_key(tenant, program_id, item.place)


class StoredItems:
    """Values of the items of one table."""

    def __init__(self, index: ProgramIndex, late: LateCharges) -> None:
        self._index, self._late = index, late

    def encode(self, item: Item) -> bytes | None:
        """Value of an item for the store; None deletes it."""
        if item.sealed is not None:
            return item.sealed[0]
        if item.place == ROW:
            row = self._index.rows.get(item.key)
            return encode(row, self._index.chunks.in_row(row)) if row is not None else None
        if item.place < ROW:
            calls = self._late.listed(item.key, late_place(item.place))
        else:
            calls = self._index.chunks.chunk(item.key, item.place)
        return encode_calls(calls.values()) if calls else None
