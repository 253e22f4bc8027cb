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

    def put(self, call: CallRow) -> None:
        self.calls[call.call_id] = call
        self.size += call_bytes(call)

    def remove(self, call: CallRow) -> None:
        del self.calls[call.call_id]
        self.size -= call_bytes(call)


@dataclass(slots=True)
class _Places:
    """Places of one program's calls, the row's among them."""

    places: dict[int, _Place] = field(default_factory=lambda: {ROW: _Place()})
    of_call: dict[CallId, int] = field(default_factory=dict)
    with_room: set[int] = field(default_factory=lambda: {ROW})
    newest: int = ROW

    def put(self, number: int, call: CallRow) -> None:
        place = self.places.setdefault(number, _Place())
        place.put(call)
        self.of_call[call.call_id] = number
        self.newest = max(self.newest, number)
        (self.with_room.add if place.has_room else self.with_room.discard)(number)


class CallChunks:
    """Places of all programs' calls."""

    def __init__(self) -> None:
        self._programs: dict[ProgramKey, _Places] = {}

    def add(self, key: ProgramKey, call: CallRow) -> int:
        """Chooses a place for a call that begins; returns its number."""
        places = self._programs.get(key)
        if places is None:
            places = self._programs[key] = _Places()
        number = min(places.with_room) if places.with_room else places.newest + 1
        places.put(number, call)
        return number

    def restore(self, key: ProgramKey, number: int, call: CallRow) -> None:
        """Records where the store holds a call."""
        self._programs.setdefault(key, _Places()).put(number, call)

    def remove(self, key: ProgramKey, call: CallRow) -> int:
        """Forgets a call that has ended; returns the place that changes."""
        places = self._programs[key]
        number = places.of_call.pop(call.call_id)
        place = places.places[number]
        place.remove(call)
        if not places.of_call:
            del self._programs[key]
        elif not place.calls and number != ROW:
            del places.places[number]
            places.with_room.discard(number)
        elif place.has_room:
            places.with_room.add(number)
        return number

    def place_of(self, key: ProgramKey, call_id: CallId) -> int:
        """Number of the place of a call in flight."""
        return self._programs[key].of_call[call_id]

    def in_row(self, row: ProgramRow) -> dict[CallId, CallRow] | None:
        """The calls to store in the row; None when that is all of them."""
        places = self._programs.get(row.key)
        return None if places is None or len(places.places) == 1 else places.places[ROW].calls

    def chunk(self, key: ProgramKey, number: int) -> dict[CallId, CallRow]:
        """The calls of a chunk; empty when it is to be deleted."""
        places = self._programs.get(key)
        place = places.places.get(number) if places is not None else None
        return place.calls if place is not None else {}
