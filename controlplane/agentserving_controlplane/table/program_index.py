"""All rows and every way to look them up: by id, page, tree, idempotency key, engine and call. Pure.

Anything that would otherwise need a walk over all rows is maintained here as rows change: counts, paused trees, the
calls on each engine, the engines of each tree, ids in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping

from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant

from agentserving_controlplane.errors import NotFoundError
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.bounds import ClosedPrograms, Tally
from agentserving_controlplane.table.call_chunks import CallChunks
from agentserving_controlplane.table.deadlines import Deadlines
from agentserving_controlplane.table.rows import CallRow, ProgramRow
from agentserving_controlplane.table.sorted_ids import SortedIds
from agentserving_controlplane.table.states import ProgramState

# Rows that one page examines at most: a page may be short, but it never blocks the event loop for long.
MAX_PAGE_SCAN = 2000
NO_CALLS: Mapping[EngineId, int] = {}


class ProgramIndex:
    """Rows by (tenant, program id)."""

    def __init__(self) -> None:
        self.rows: dict[ProgramKey, ProgramRow] = {}
        self.chunks = CallChunks()
        # Calls in flight, with the keys of their rows.
        self.calls: dict[CallId, ProgramKey] = {}
        self.running_calls = 0
        # By tenant: programs that are not closed, calls in flight, paused trees.
        self.live, self.calls_of, self.paused_of = Tally(), Tally(), Tally()
        self.closed = ClosedPrograms()
        # Programs with calls in flight.
        self.busy = 0
        # Roots whose trees are paused.
        self.paused: set[ProgramKey] = set()
        # Live roots whose trees have spent their budgets.
        self.spent: set[ProgramKey] = set()
        # Steady time of the last sign of life: of a call in flight; of a program, or when it closed.
        # Calls are in the order of it.
        self.heard_us: OrderedDict[CallId, int] = OrderedDict()
        self.active_us: dict[ProgramKey, int] = {}
        self.deadlines = Deadlines()
        # (tenant, idempotency key of OpenProgram) -> program id.
        self._opened_with: dict[tuple[Tenant, str], ProgramId] = {}
        self._ids: dict[Tenant, SortedIds] = {}
        self._children: dict[ProgramKey, set[ProgramId]] = {}
        self._on_engine: dict[EngineId, dict[CallId, ProgramKey]] = {}
        # Engines whose calls have changed; the reader empties the set.
        self.engines_changed: set[EngineId] = set()
        # Calls in flight of each tree, by engine.
        self._engines_of_tree: dict[ProgramKey, dict[EngineId, int]] = {}
        # Running calls of each tree that has some.
        self._running_of_tree: dict[ProgramKey, int] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def open_calls(self) -> int:
        """Number of calls in flight."""
        return len(self.calls)

    @property
    def waiting_trees(self) -> int:
        """Trees with calls in flight of which none runs."""
        return len(self._engines_of_tree) - len(self._running_of_tree)

    def find(self, key: ProgramKey) -> ProgramRow:
        """The row of a program; NotFoundError for unknown programs and those of other tenants alike."""
        row = self.rows.get(key)
        if row is None:
            raise NotFoundError(
                "PROGRAM_NOT_FOUND", f"no program {key.program_id!r}: open it first", field="program_id"
            )
        return row

    def call(self, call_id: CallId, tenant: Tenant) -> tuple[ProgramRow, CallRow] | None:
        """A tenant's call in flight, with its program."""
        key = self.calls.get(call_id)
        if key is None or key.tenant != tenant:
            return None
        row = self.rows[key]
        return row, row.calls[call_id]

    def opened_with(self, tenant: Tenant, idempotency_key: str) -> ProgramRow | None:
        """The program that an OpenProgram with this key has opened."""
        program_id = self._opened_with.get((tenant, idempotency_key)) if idempotency_key else None
        return self.rows.get(ProgramKey(tenant, program_id)) if program_id is not None else None

    def root_of(self, row: ProgramRow) -> ProgramRow:
        """The row that carries the account of a program's tree."""
        return self.rows.get(row.root_key, row)

    def state_of(self, row: ProgramRow) -> ProgramState:
        """CLOSED takes precedence over PAUSED, and PAUSED over the other states."""
        if row.state is ProgramState.CLOSED:
            return row.state
        root = self.root_of(row)
        return ProgramState.PAUSED if root.paused or budgets.is_spent(root) else row.state

    def calls_of_tree(self, root: ProgramKey) -> int:
        """Calls in flight of a tree."""
        return sum(self._engines_of_tree.get(root, NO_CALLS).values())

    def tree(self, row: ProgramRow) -> Iterator[ProgramRow]:
        """A program and all its descendants."""
        stack = [row.program_id]
        while stack:
            key = ProgramKey(row.tenant, stack.pop())
            found = self.rows.get(key)
            if found is not None:
                yield found
            stack += sorted(self._children.get(key, ()))

    def has_children(self, row: ProgramRow) -> bool:
        """True while the row of a sub-agent is retained."""
        return bool(self._children.get(row.key))

    def page(
        self, tenant: Tenant, after: str, size: int, wanted: Collection[ProgramState]
    ) -> tuple[list[ProgramRow], str]:
        """At most `size` rows with ids after `after`, ordered by id, and the id to continue after (empty at the end).

        Without `wanted` states: all but CLOSED.
        """
        ids = self._ids.get(tenant)
        found: list[ProgramRow] = []
        last = ""
        for scanned, program_id in enumerate(ids.after(after) if ids is not None else ()):
            if len(found) == size or scanned == MAX_PAGE_SCAN:
                return found, last
            row, last = self.rows[ProgramKey(tenant, program_id)], program_id
            state = self.state_of(row)
            if state in wanted if wanted else state is not ProgramState.CLOSED:
                found.append(row)
        return found, ""

    def calls_on(self, engine_id: EngineId) -> Mapping[CallId, ProgramKey]:
        """A live view of the calls in flight on an engine."""
        return self._on_engine.setdefault(engine_id, {})

    def engines_with_calls(self) -> list[EngineId]:
        """Engines on which calls are in flight."""
        return [engine_id for engine_id, calls in self._on_engine.items() if calls]

    def engines_of_tree(self, root: ProgramKey) -> Mapping[EngineId, int]:
        """Engines on which calls of a tree are in flight, with their numbers."""
        return self._engines_of_tree.get(root, NO_CALLS)

    # -- changing ------------------------------------------------------------------------------------------------

    def restore_call(self, row: ProgramRow, number: int, call: CallRow, steady_us: int) -> None:
        """Adds a call that the store holds in a chunk."""
        self.busy += not row.calls
        row.calls[call.call_id] = call
        self.chunks.restore(row, number, call)
        self._count_call(row, call, steady_us)

    def insert(self, row: ProgramRow, steady_us: int) -> None:
        """Adds a row without calls."""
        self._ids.setdefault(row.tenant, SortedIds()).add(row.program_id)
        key = row.key
        self.rows[key] = row
        self.active(row, steady_us)
        if row.parent:
            self._children.setdefault(ProgramKey(row.tenant, row.parent), set()).add(row.program_id)
        self.name_opening(row)
        if row.paused:
            self.note_pause(row)
        self.note_budget(row)
        if row.state is ProgramState.CLOSED:
            self.closed.add(key, cancelled=row.cancelled)
        else:
            self.live.add(row.tenant, 1)

    def note_end(self, row: ProgramRow) -> None:
        """A program has been closed."""
        self.live.add(row.tenant, -1)
        self.closed.add(row.key, cancelled=row.cancelled)

    def note_reopening(self, row: ProgramRow) -> None:
        """A closed program is live again."""
        self.live.add(row.tenant, 1)
        self.closed.discard(row.key)

    def note_pause(self, row: ProgramRow) -> None:
        """The pause of a root's tree has begun or ended."""
        (self.paused.add if row.paused else self.paused.discard)(row.key)
        self.paused_of.add(row.tenant, 1 if row.paused else -1)

    def note_budget(self, root: ProgramRow) -> None:
        """A tree's budget may have been spent, or added to, or its root closed."""
        is_waiting = budgets.is_spent(root) and root.state is not ProgramState.CLOSED
        (self.spent.add if is_waiting else self.spent.discard)(root.key)

    def active(self, row: ProgramRow, steady_us: int) -> None:
        """Records a sign of life of a program, or its end."""
        self.active_us[row.key] = steady_us
        self.deadlines.mark(row.key)

    def heard(self, call: CallRow, steady_us: int) -> None:
        """Records a sign of life of a call."""
        self.heard_us[call.call_id] = steady_us
        self.heard_us.move_to_end(call.call_id)

    def name_opening(self, row: ProgramRow) -> None:
        """Makes a row findable by the idempotency key that opened it."""
        if row.idempotency_key:
            self._opened_with[(row.tenant, row.idempotency_key)] = row.program_id

    def unname_opening(self, row: ProgramRow) -> None:
        """Inverse of `name_opening`."""
        if row.idempotency_key:
            self._opened_with.pop((row.tenant, row.idempotency_key), None)

    def remove(self, row: ProgramRow) -> None:
        """Removes a closed row that has no calls and no children."""
        key = row.key
        del self.rows[key]
        del self.active_us[key]
        self.closed.discard(key)
        self.spent.discard(key)
        ids = self._ids[row.tenant]
        ids.remove(row.program_id)
        if not ids:
            del self._ids[row.tenant]
        self._children.pop(key, None)
        if row.parent:
            parent = ProgramKey(row.tenant, row.parent)
            siblings = self._children.get(parent, set())
            siblings.discard(row.program_id)
            if not siblings:
                self._children.pop(parent, None)
                self.deadlines.mark(parent)
        self.unname_opening(row)

    def add_call(self, row: ProgramRow, call: CallRow, steady_us: int) -> int:
        """Adds a call that begins; returns its place."""
        self.busy += not row.calls
        row.calls[call.call_id] = call
        place = self.chunks.add(row, call)
        self._count_call(row, call, steady_us)
        return place

    def drop_call(self, row: ProgramRow, call: CallRow) -> int:
        """Removes a call that has ended; returns its place."""
        del row.calls[call.call_id]
        del self.calls[call.call_id]
        del self.heard_us[call.call_id]
        self._count_running(row, -int(call.running))
        self.calls_of.add(row.tenant, -1)
        if not row.calls:
            self.busy -= 1
            self.deadlines.mark(row.key)
        self._off_engine(row, call)
        return self.chunks.remove(row, call)

    def move_call(self, row: ProgramRow, call: CallRow, engine_id: EngineId, running: bool) -> None:
        """Records where a call is and whether it runs."""
        if call.engine_id != engine_id:
            self._off_engine(row, call)
            call.engine_id = engine_id
            self._to_engine(row, call)
        self._count_running(row, running - call.running)
        call.running = running

    def place_of(self, row: ProgramRow, call: CallRow) -> int:
        """Where the store holds a call in flight: ROW or the number of a chunk."""
        return self.chunks.place_of(row, call)

    def _count_call(self, row: ProgramRow, call: CallRow, steady_us: int) -> None:
        self.calls[call.call_id] = row.key
        self.heard_us[call.call_id] = steady_us
        self._count_running(row, int(call.running))
        self.calls_of.add(row.tenant, 1)
        self._to_engine(row, call)

    def _count_running(self, row: ProgramRow, change: int) -> None:
        if not change:
            return
        self.running_calls += change
        running = self._running_of_tree.get(row.root_key, 0) + change
        if running:
            self._running_of_tree[row.root_key] = running
        else:
            del self._running_of_tree[row.root_key]

    def _to_engine(self, row: ProgramRow, call: CallRow) -> None:
        self._on_engine.setdefault(call.engine_id, {})[call.call_id] = row.key
        self.engines_changed.add(call.engine_id)
        engines = self._engines_of_tree.setdefault(row.root_key, {})
        engines[call.engine_id] = engines.get(call.engine_id, 0) + 1

    def _off_engine(self, row: ProgramRow, call: CallRow) -> None:
        self._on_engine[call.engine_id].pop(call.call_id, None)
        self.engines_changed.add(call.engine_id)
        engines = self._engines_of_tree[row.root_key]
        engines[call.engine_id] -= 1
        if not engines[call.engine_id]:
            del engines[call.engine_id]
        if not engines:
            del self._engines_of_tree[row.root_key]
