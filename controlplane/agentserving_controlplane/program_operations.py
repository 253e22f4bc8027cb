"""The life of programs, as ProgramService offers it. Every operation that promises durability awaits the store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant

from agentserving_controlplane.engines.directives import PauseCalls, ToolWait, cancel_in_parts
from agentserving_controlplane.errors import InvalidError
from agentserving_controlplane.state import LeaderState, ProgramView
from agentserving_controlplane.table import traces, tries
from agentserving_controlplane.table.budgets import Addition
from agentserving_controlplane.table.programs import PROGRAM_ID, OpenRequest
from agentserving_controlplane.table.rows import MAX_THREAD_BYTES, MAX_TOOL_BYTES, ProgramRow
from agentserving_controlplane.table.states import Outcome, ProgramState
from agentserving_controlplane.table.traces import Finished

MAX_PAGE, DEFAULT_PAGE = 1000, 100
NO_ADDITION = Addition()
# Of a trace: programs of the tree, and finished calls of all of them, about half a megabyte.
MAX_TRACED_PROGRAMS, MAX_TRACED_CALLS, MIN_TRACED_CALLS = 100, 2000, 10


@dataclass(frozen=True, slots=True)
class Page:
    """Programs in order of id; `next_token` is empty at the end."""

    programs: list[ProgramView]
    next_token: str
    revision: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Programs that changed up to a revision, and the ids of those that were removed."""

    revision: int
    programs: list[ProgramView]
    removed: list[ProgramId]


@dataclass(frozen=True, slots=True)
class ProgramTrace:
    """What a program did: finished calls and tool waits, oldest first. `left_out`: calls no longer known."""

    view: ProgramView
    finished: list[Finished]
    tool_waits: list[traces.ToolWait]
    left_out: int


@dataclass(frozen=True, slots=True)
class TreeTrace:
    """A program and its descendants, in the order in which they were opened; `left_out` programs are not there."""

    programs: list[ProgramTrace]
    left_out: int


class ProgramOperations:
    """ProgramService, in values. All raise NotFoundError for programs that the tenant does not have."""

    def __init__(self, state: LeaderState) -> None:
        self._state = state

    def _find(self, key: ProgramKey) -> ProgramRow:
        return self._state.table.index.find(key)

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, key: ProgramKey) -> ProgramView:
        """One program."""
        return self._state.describe(self._find(key))

    def page(self, tenant: Tenant, token: str, size: int, states: Collection[ProgramState]) -> Page:
        """A page of a tenant's programs; size 0 = DEFAULT_PAGE, no states = all but CLOSED."""
        if size > MAX_PAGE:
            raise InvalidError("PAGE_TOO_LARGE", f"page_size: at most {MAX_PAGE}", field="page_size")
        if token and PROGRAM_ID.fullmatch(token) is None:
            raise InvalidError("BAD_PAGE_TOKEN", "page_token: must come from an earlier page", field="page_token")
        revision = self._state.revision
        rows, next_token = self._state.table.index.page(tenant, token, size or DEFAULT_PAGE, states)
        return Page([self._state.describe(row) for row in rows], next_token, revision)

    def changed(self, after: int, tenant: Tenant, program_id: ProgramId) -> Changed:
        """A tenant's programs, or the one, that changed after a revision. GoneError."""
        state = self._state
        changes = state.history.after(after, tenant, program_id)
        rows = [state.table.rows.get(ProgramKey(tenant, changed)) for changed, gone in changes.items() if not gone]
        return Changed(
            state.revision,
            [state.describe(row) for row in rows if row is not None],
            [changed for changed, gone in changes.items() if gone],
        )

    def trace(self, key: ProgramKey) -> TreeTrace:
        """What a program's tree has done, as far as it is remembered: the newest calls of each of its programs."""
        found = self._find(key)
        rows = sorted(self._state.table.index.tree(found), key=lambda row: (row is not found, row.open_us))
        kept = self._state.table.programs.traces
        shown = rows[:MAX_TRACED_PROGRAMS]
        # Each program has its share of the response, and what others do not need.
        room = MAX_TRACED_CALLS
        programs: list[ProgramTrace] = []
        for index, row in enumerate(shown):
            trace = kept.of(row.key)
            share = max(MIN_TRACED_CALLS, room // (len(shown) - index))
            finished = list(trace.finished)[-share:]
            room -= len(finished)
            # A call that no engine has reported is not in the count.
            reported = sum(1 for each in finished if each.call.boot_id)
            left_out = max(0, row.calls_completed - reported)
            programs.append(ProgramTrace(self._state.describe(row), finished, list(trace.tool_waits), left_out))
        return TreeTrace(programs, len(rows) - len(shown))

    # -- changing ------------------------------------------------------------------------------------------------

    async def open(self, request: OpenRequest) -> ProgramView:
        """Opens a program, or a cancelled one again."""
        self._state.check_room()
        self._state.check_space()
        row = self._state.table.programs.open(request, self._state.now())
        await self._state.settled()
        return self._state.describe(row)

    async def close(self, key: ProgramKey, outcome: Outcome) -> ProgramView:
        """Ends a program and its sub-agents; calls in flight finish. NONE means COMPLETED."""
        row, outcome = self._find(key), outcome or Outcome.COMPLETED
        if outcome not in (Outcome.COMPLETED, Outcome.FAILED):
            raise InvalidError("BAD_OUTCOME", "outcome: COMPLETED or FAILED", field="outcome")
        was_paused = row.paused
        self._state.table.programs.close_tree(row, outcome, self._state.now())
        if was_paused:
            self._announce_pause(row)
        await self._state.settled()
        return self._state.describe(row)

    async def cancel(self, key: ProgramKey) -> tuple[ProgramView, int]:
        """Aborts the calls of a program and its descendants, and closes them; also returns the number of calls."""
        state, now = self._state, self._state.now()
        row = self._find(key)
        by_engine: dict[EngineId, list[CallId]] = {}
        count = 0
        for program in state.table.index.tree(row):
            for call in program.calls.values():
                for engine_id in tries.named(call):
                    by_engine.setdefault(engine_id, []).append(call.call_id)
            count += len(program.calls)
            was_paused = program.paused
            state.table.programs.cancel(program, now)
            if was_paused:
                self._announce_pause(program)
        for engine_id, call_ids in by_engine.items():
            for directive in cancel_in_parts(call_ids):
                state.links.send(engine_id, directive)
        await state.settled()
        return state.describe(row), count

    async def pause(self, key: ProgramKey) -> ProgramView:
        """Pauses the tree of a program on every engine."""
        row = self._find(key)
        self._announce_pause(self._state.table.programs.pause(row, True))
        await self._state.settled()
        return self._state.describe(row)

    async def resume(self, key: ProgramKey, addition: Addition = NO_ADDITION) -> ProgramView:
        """Resumes the tree of a program, with an addition to its budget. ConflictError while that is spent."""
        row = self._find(key)
        self._announce_pause(self._state.table.programs.resume(row, addition))
        await self._state.settled()
        return self._state.describe(row)

    def _announce_pause(self, root: ProgramRow) -> None:
        self._state.links.send_all(PauseCalls(root.key, root.paused))

    def begin_tool_wait(self, key: ProgramKey, thread_id: str, tool: str, expected_us: int) -> None:
        """The program waits for a tool. A hint, so not awaited by the store."""
        if expected_us < 0:
            raise InvalidError("NEGATIVE", "expected_us must not be negative", field="expected_us")
        if len(tool.encode()) > MAX_TOOL_BYTES:
            raise InvalidError("TOOL_TOO_LONG", f"tool: at most {MAX_TOOL_BYTES} bytes", field="tool")
        row = self._find(key)
        self._check_thread(thread_id)
        self._state.table.programs.begin_tool_wait(row, tool, expected_us, self._state.now())
        self._announce_tool_wait(row, thread_id, True, expected_us)
        self._state.settle()

    def end_tool_wait(self, key: ProgramKey, thread_id: str) -> None:
        """The program goes on; without effect when it was not waiting."""
        row = self._find(key)
        self._check_thread(thread_id)
        if self._state.table.programs.end_tool_wait(row, self._state.now()):
            self._announce_tool_wait(row, thread_id, False, 0)
            self._state.settle()

    @staticmethod
    def _check_thread(thread_id: str) -> None:
        if len(thread_id.encode()) > MAX_THREAD_BYTES:
            raise InvalidError("BAD_THREAD_ID", f"thread_id: at most {MAX_THREAD_BYTES} bytes", field="thread_id")

    def _announce_tool_wait(self, row: ProgramRow, thread_id: str, waiting: bool, expected_us: int) -> None:
        """Sent to the engines that ran the program's calls: only they may retain its KV."""
        directive = ToolWait(
            root=row.root_key,
            program_id=row.program_id,
            thread_id=thread_id,
            waiting=waiting,
            expected_us=expected_us,
        )
        for engine_id in row.engines:
            self._state.links.send(engine_id, directive)
