"""What has ended and is not sent yet: bounded, and never in the way of the table. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from agentserving.contract.ids import Tenant

from agentserving_controlplane.table.endings import ClosedProgram, EndedCall, Origin
from agentserving_controlplane.table.traces import ToolWait

# About a kilobyte each; at 1,000 calls/s a collector may pause for ten seconds.
MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class EndedToolWait:
    """A declared tool wait that is over."""

    origin: Origin
    wait: ToolWait


Item = tuple[Tenant, EndedCall | ClosedProgram | EndedToolWait]


class Feed:
    """Takes endings from the table. `counts`: of those that were `sent` and `dropped`."""

    def __init__(self, counts: dict[str, int], limit: int = MAX_WAITING) -> None:
        self._limit, self.counts = limit, counts
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, tenant: Tenant, item: EndedCall | ClosedProgram | EndedToolWait) -> None:
        """Adds an ending, unless there is no room."""
        if len(self._items) >= self._limit:
            self.counts["dropped"] += 1
        else:
            self._items.append((tenant, item))

    def take(self, most: int) -> list[Item]:
        """The oldest `most` of them, which are then forgotten."""
        return [self._items.popleft() for _ in range(min(most, len(self._items)))]
