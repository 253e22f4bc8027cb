"""The newest finished calls and tool waits of each program, for those who look at a run. Bounded in all. Pure.

Kept by the leader alone and lost when it restarts: rows keep the sums. Of all tenants, the one that takes the most room
makes room, by its program that has ended a call least recently, so that a busy tenant does not hide another's runs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agentserving.contract.ids import ProgramId, ProgramKey, Tenant

from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome

# Calls and tool waits of one program, and of all. A call takes about a kilobyte.
MAX_PER_PROGRAM, MAX_IN_ALL = 512, 20_000


class Finished(NamedTuple):
    """A call that has left the table; `end_us` in Unix microseconds."""

    call: CallRow
    outcome: Outcome
    end_us: int


class ToolWait(NamedTuple):
    """A declared tool wait; `end_us` 0 while it goes on. Unix microseconds."""

    tool: str
    begin_us: int
    end_us: int = 0


@dataclass(slots=True)
class Trace:
    """What one program did, oldest first."""

    finished: deque[Finished] = field(default_factory=lambda: deque(maxlen=MAX_PER_PROGRAM))
    tool_waits: deque[ToolWait] = field(default_factory=lambda: deque(maxlen=MAX_PER_PROGRAM))

    @property
    def size(self) -> int:
        return len(self.finished) + len(self.tool_waits)


class Traces:
    """Traces of programs, by tenant."""

    def __init__(self, limit: int = MAX_IN_ALL) -> None:
        self._limit = limit
        self._tenants: dict[Tenant, OrderedDict[ProgramId, Trace]] = {}
        self._sizes: dict[Tenant, int] = {}
        self._size = 0
        # Receives each tool wait that is over, when set.
        self.on_tool_wait: Callable[[ProgramKey, ToolWait], None] | None = None

    def __len__(self) -> int:
        """Calls and tool waits kept."""
        return self._size

    def of(self, key: ProgramKey) -> Trace:
        """The trace of a program; an empty one when nothing is known of it."""
        programs = self._tenants.get(key.tenant)
        trace = programs.get(key.program_id) if programs is not None else None
        return trace if trace is not None else Trace()

    def ended(self, key: ProgramKey, finished: Finished) -> None:
        """A call has ended."""
        trace = self._touch(key)
        before = trace.size
        trace.finished.append(finished)
        self._grown(key.tenant, trace.size - before)

    def tool_wait_began(self, key: ProgramKey, tool: str, now_us: int) -> None:
        """The program waits for a tool; a wait that goes on ends."""
        self.tool_wait_ended(key, now_us)
        trace = self._touch(key)
        before = trace.size
        trace.tool_waits.append(ToolWait(tool, now_us))
        self._grown(key.tenant, trace.size - before)

    def tool_wait_ended(self, key: ProgramKey, now_us: int) -> None:
        """The program does not wait any more; without effect when it did not."""
        waits = self.of(key).tool_waits
        if waits and not waits[-1].end_us:
            waits[-1] = waits[-1]._replace(end_us=now_us)
            if self.on_tool_wait is not None:
                self.on_tool_wait(key, waits[-1])

    def forget(self, key: ProgramKey) -> None:
        """The program's row is gone."""
        programs = self._tenants.get(key.tenant)
        trace = programs.pop(key.program_id, None) if programs is not None else None
        if programs is not None and trace is not None:
            self._grown(key.tenant, -trace.size)
            if not programs:
                del self._tenants[key.tenant], self._sizes[key.tenant]

    def _touch(self, key: ProgramKey) -> Trace:
        programs = self._tenants.setdefault(key.tenant, OrderedDict())
        trace = programs.get(key.program_id)
        if trace is None:
            trace = programs[key.program_id] = Trace()
        programs.move_to_end(key.program_id)
        return trace

    def _grown(self, tenant: Tenant, by: int) -> None:
        self._sizes[tenant] = self._sizes.get(tenant, 0) + by
        self._size += by
        while self._size > self._limit:
            largest = max(self._sizes, key=lambda each: self._sizes[each])
            self.forget(ProgramKey(largest, next(iter(self._tenants[largest]))))
