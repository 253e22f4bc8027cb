"""The newest endings of calls and programs, for recorders. Bounded; a slow reader delays no one. Pure.

Positions count a tenant's endings up by one from `first`, so a reader that comes too late can tell how many it missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from agentserving.contract.ids import ProgramId, Tenant
from agentserving.contract.service_class import ServiceClass

from agentserving_controlplane.table.rows import CallRow, ProgramRow
from agentserving_controlplane.table.states import Outcome

# Of all tenants together; an ending takes about half a kilobyte. At 1000 calls/s a reader may pause for 20 s.
KEPT = 20_000
# Endings in one message of about 300 kB.
MAX_NEWS = 1000


class Origin(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The program of a call; instants in Unix microseconds."""

    program_id: ProgramId
    name: str
    parent: ProgramId
    root: ProgramId
    open_us: int
    root_open_us: int
    service_class: ServiceClass = ServiceClass.STANDARD


class EndedCall(msgspec.Struct, frozen=True, gc=False):
    """A call that has left the table, with its final counters."""

    origin: Origin
    call: CallRow
    outcome: Outcome
    end_us: int


class ClosedProgram(msgspec.Struct, frozen=True, gc=False):
    """A program that takes no new calls."""

    origin: Origin
    outcome: Outcome
    close_us: int
    calls_in_flight: int


Ending = EndedCall | ClosedProgram


@dataclass(frozen=True, slots=True)
class News:
    """Endings after a reader's position; `more` when further ones are waiting."""

    endings: list[Ending]
    position: int
    lost: int
    more: bool


def origin_of(row: ProgramRow, root: ProgramRow) -> Origin:
    return Origin(
        program_id=row.program_id,
        name=row.name,
        parent=row.parent,
        root=row.root,
        open_us=row.open_us,
        root_open_us=root.open_us,
        service_class=row.service_class,
    )


class Endings:
    """A ring of the newest endings, in order."""

    def __init__(self, first: int, kept: int = KEPT) -> None:
        self._first = first
        self._newest: dict[Tenant, int] = {}
        self._ring: deque[tuple[Tenant, int, Ending]] = deque(maxlen=kept)
        # Endings that readers asked for too late.
        self.lost = 0
        # Receives each ending, when set.
        self.on_ending: Callable[[Tenant, Ending], None] | None = None

    def note(self, tenant: Tenant, ending: Ending) -> None:
        """Adds an ending as the tenant's newest."""
        position = self._newest[tenant] = self.newest(tenant) + 1
        self._ring.append((tenant, position, ending))
        if self.on_ending is not None:
            self.on_ending(tenant, ending)

    def newest(self, tenant: Tenant) -> int:
        """Position of a tenant's newest ending."""
        return self._newest.get(tenant, self._first)

    def knows(self, tenant: Tenant, position: int) -> bool:
        """False for a position that another process has given out."""
        return self._first <= position <= self.newest(tenant)

    def after(self, tenant: Tenant, position: int, limit: int = MAX_NEWS) -> News:
        """Endings after a known position, oldest first."""
        newest = self.newest(tenant)
        found: list[tuple[int, Ending]] = []
        if position < newest:
            for owner, at, ending in reversed(self._ring):
                if owner == tenant:
                    if at <= position:
                        break
                    found.append((at, ending))
                    if at == position + 1:
                        break
        found.reverse()
        lost = (found[0][0] if found else newest + 1) - position - 1
        self.lost += lost
        news = found[:limit]
        return News([ending for _, ending in news], news[-1][0] if news else newest, lost, len(found) > limit)
