"""Calls and programs that have ended, for those who record them. Bounded; nobody waits for a reader. Pure.

Positions count a tenant's endings up by one, from `first`: the difference of two is how many came between, so a reader
that comes too late learns how many it has missed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from agentserving_controlplane.table.rows import CallRow, ProgramRow

# Of all tenants together; an ending takes about half a kilobyte. At 1000 calls a second a reader may pause for 20 s.
KEPT = 20_000
# Told at a time: a message of about 300 kB.
MOST = 1000


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose a call is; instants in microseconds since the epoch."""

    program_id: str
    name: str
    parent: str
    root: str
    open_us: int
    root_open_us: int


@dataclass(frozen=True, slots=True)
class EndedCall:
    """A call that has left the table, with its counters in all."""

    origin: Origin
    call: CallRow
    outcome: int
    end_us: int


@dataclass(frozen=True, slots=True)
class ClosedProgram:
    """A program that takes no new calls."""

    origin: Origin
    outcome: int
    close_us: int
    calls_in_flight: int


Ending = EndedCall | ClosedProgram


@dataclass(frozen=True, slots=True)
class News:
    """What a reader has not been told yet; `more` is kept for its next look."""

    endings: list[Ending]
    position: int
    lost: int
    more: bool


def origin_of(row: ProgramRow, root: ProgramRow) -> Origin:
    """Whose the calls of a row are."""
    return Origin(row.program_id, row.name, row.parent, row.root, row.open_us, root.open_us)


class Endings:
    """The newest ones, in order."""

    def __init__(self, first: int, kept: int = KEPT) -> None:
        self._first = first
        self._newest: dict[str, int] = {}
        self._kept: deque[tuple[str, int, Ending]] = deque(maxlen=kept)
        # Never told to a reader that asked for them.
        self.lost = 0

    def note(self, tenant: str, ending: Ending) -> None:
        """Something has ended."""
        position = self._newest[tenant] = self.newest(tenant) + 1
        self._kept.append((tenant, position, ending))

    def newest(self, tenant: str) -> int:
        """Position of a tenant's newest ending."""
        return self._newest.get(tenant, self._first)

    def knows(self, tenant: str, position: int) -> bool:
        """False for a position that another process has given."""
        return self._first <= position <= self.newest(tenant)

    def after(self, tenant: str, position: int, most: int = MOST) -> News:
        """What came after a position that is known, the oldest first."""
        newest = self.newest(tenant)
        found: list[tuple[int, Ending]] = []
        if position < newest:
            for owner, at, ending in reversed(self._kept):
                if owner == tenant:
                    if at <= position:
                        break
                    found.append((at, ending))
                    if at == position + 1:
                        break
        found.reverse()
        lost = (found[0][0] if found else newest + 1) - position - 1
        self.lost += lost
        told = found[:most]
        return News([ending for _, ending in told], told[-1][0] if told else newest, lost, len(found) > most)
