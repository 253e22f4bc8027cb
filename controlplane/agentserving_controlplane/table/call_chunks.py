"""Where the calls of a program are stored: in its row, or, when they are many, in chunks with keys of their own. Pure.

A change of one call must not cost a write of all calls of its program, and no value of the store may grow without
bound (etcd: 1.5 MiB a transaction). The row therefore holds at most MAX_CALLS calls of MAX_BYTES; further calls go to
chunks with the same bounds. A call stays where it was first put, so its admission and its end change the row and at
most one chunk, which land together. Chunks without calls are deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentserving.contract.ids import CallId, ProgramKey

from agentserving_controlplane.table.rows import CallRow, ProgramRow, call_bytes

MAX_CALLS, MAX_BYTES = 32, 65_536
# Number of the place that is the row itself; chunks count from 1.
ROW = 0


@dataclass(slots=True)
class _Place:
    calls: dict[CallId, CallRow] = field(default_factory=dict)
    size: int = 0

    @property
    def has_room(self) -> bool:
        return len(self.calls) < MAX_CALLS and self.size < MAX_BYTES


@dataclass(slots=True)
class _Places:
    """The places of one program's calls: the row, and the chunks that have calls."""

    places: dict[int, _Place] = field(default_factory=lambda: {ROW: _Place()})
    of_call: dict[CallId, int] = field(default_factory=dict)
    with_room: set[int] = field(default_factory=lambda: {ROW})
    newest: int = ROW

    def put(self, number: int, call: CallRow) -> None:
        place = self.places.setdefault(number, _Place())
        place.calls[call.call_id] = call
        place.size += call_bytes(call)
        self.of_call[call.call_id] = number
        self.newest = max(self.newest, number)
        (self.with_room.add if place.has_room else self.with_room.discard)(number)

    def add(self, call: CallRow) -> int:
        number = min(self.with_room) if self.with_room else self.newest + 1
        self.put(number, call)
        return number

    def remove(self, call: CallRow) -> int:
        number = self.of_call.pop(call.call_id)
        place = self.places[number]
        del place.calls[call.call_id]
        place.size -= call_bytes(call)
        if not place.calls and number != ROW:
            del self.places[number]
            self.with_room.discard(number)
        elif place.has_room:
            self.with_room.add(number)
        return number


class CallChunks:
    """Places of all programs' calls. Most programs have few, all in the row: for them only a sum is maintained."""

    def __init__(self) -> None:
        # Of programs without chunks: size of the calls in the row.
        self._row_bytes: dict[ProgramKey, int] = {}
        # Of programs with chunks.
        self._places: dict[ProgramKey, _Places] = {}

    def add(self, row: ProgramRow, call: CallRow) -> int:
        """Chooses a place for a call that has been added to `row.calls`; returns its number."""
        places = self._places.get(row.key)
        if places is not None:
            return places.add(call)
        size = self._row_bytes.get(row.key, 0)
        if len(row.calls) <= MAX_CALLS and size < MAX_BYTES:
            self._row_bytes[row.key] = size + call_bytes(call)
            return ROW
        return self._spread(row, call).add(call)

    def _spread(self, row: ProgramRow, call: CallRow) -> _Places:
        """Begins to use chunks for a program: all its calls but the new one are in the row."""
        places = self._places[row.key] = _Places()
        self._row_bytes.pop(row.key, None)
        for known in row.calls.values():
            if known is not call:
                places.put(ROW, known)
        return places

    def restore(self, row: ProgramRow, number: int, call: CallRow) -> None:
        """Records in which chunk the store holds a call; before calls of the row itself are added."""
        self._places.setdefault(row.key, _Places()).put(number, call)

    def remove(self, row: ProgramRow, call: CallRow) -> int:
        """Forgets a call that has been removed from `row.calls`; returns the place that changes."""
        places = self._places.get(row.key)
        if places is None:
            if row.calls:
                self._row_bytes[row.key] -= call_bytes(call)
            else:
                del self._row_bytes[row.key]
            return ROW
        number = places.remove(call)
        if len(places.places) == 1:
            del self._places[row.key]
            if places.of_call:
                self._row_bytes[row.key] = places.places[ROW].size
        return number

    def place_of(self, row: ProgramRow, call: CallRow) -> int:
        """Number of the place of a call in flight."""
        places = self._places.get(row.key)
        return ROW if places is None else places.of_call[call.call_id]

    def in_row(self, row: ProgramRow) -> dict[CallId, CallRow] | None:
        """The calls to store in the row; None when that is all of them."""
        places = self._places.get(row.key)
        return None if places is None else places.places[ROW].calls

    def chunk(self, key: ProgramKey, number: int) -> dict[CallId, CallRow]:
        """The calls of a chunk; empty when it is to be deleted."""
        places = self._places.get(key)
        place = places.places.get(number) if places is not None else None
        return place.calls if place is not None else {}
