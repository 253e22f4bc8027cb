"""Tool waits that clients have announced, with the time at which each is expected to end. Pure.

Only expected ends are kept: a wait of unknown length changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from agentserving.contract.ids import ProgramId, ProgramKey

# Announced waits remembered; the oldest is forgotten first.
MAX_WAITS = 16_384


class Origin(NamedTuple):
    """The chain of calls a context belongs to: a program of the root's tree and a thread ("" = the program itself)."""

    program_id: ProgramId
    thread_id: str


class ToolWaits:
    """Expected ends by root program and origin; microseconds on the caller's clock."""

    def __init__(self) -> None:
        self._ends: OrderedDict[tuple[ProgramKey, Origin], int] = OrderedDict()

    def begin(self, root: ProgramKey, origin: Origin, until_us: int) -> None:
        """A wait has begun that is expected to end at `until_us`."""
        self._ends[root, origin] = until_us
        self._ends.move_to_end((root, origin))
        if len(self._ends) > MAX_WAITS:
            self._ends.popitem(last=False)

    def end(self, root: ProgramKey, origin: Origin) -> None:
        """The wait is over."""
        self._ends.pop((root, origin), None)

    def expected_end_us(self, root: ProgramKey, origin: Origin) -> int:
        """When the origin's next call is expected; 0 when unknown. A wait of a whole program covers its threads."""
        if not self._ends:
            return 0
        whole = Origin(origin.program_id, "")
        return max(self._ends.get((root, origin), 0), self._ends.get((root, whole), 0))
