"""All rows, and every way they are looked up: by id, by page, by tree, by idempotency key, by engine. Pure.

What would cost a walk over all rows is kept as it changes: counts, held trees, the calls on an engine, ids in order.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator

from agentserving_controlplane.errors import NotFoundError
from agentserving_controlplane.table.rows import CallRow, ProgramRow, call_bytes

ACTIVE, TOOL_WAIT, PAUSED, CLOSED = 1, 2, 3, 4

# Rows that one page looks at, whatever it finds: it may be short, but it never holds up the loop.
MAX_PAGE_SCAN = 2000

Key = tuple[str, str]


class ProgramIndex:
    """Rows by (tenant, program id)."""

    def __init__(self) -> None:
        self.rows: dict[Key, ProgramRow] = {}
        self.open_calls = 0
        self.running_calls = 0
        self.live = 0
        self.busy = 0
        # Bytes that the calls in flight of a row take at most.
        self.call_bytes: dict[Key, int] = {}
        # Roots whose trees are held; keys of rows that were opened with an idempotency key.
        self.held: set[Key] = set()
        self.opened_with: dict[Key, str] = {}
        self._ids: dict[str, list[str]] = {}
        self._children: dict[Key, set[str]] = {}
        self._on_engine: dict[str, dict[str, Key]] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, tenant: str, program_id: str) -> ProgramRow:
        """The row; NotFoundError for an unknown program and for one of another tenant alike."""
        row = self.rows.get((tenant, program_id))
        if row is None:
            raise NotFoundError("PROGRAM_NOT_FOUND", f"no program {program_id!r}: open it first", field="program_id")
        return row

    def root_of(self, row: ProgramRow) -> ProgramRow:
        """The row that holds the account of a program's tree."""
        return self.rows.get((row.tenant, row.root), row)

    def state_of(self, row: ProgramRow) -> int:
        """CLOSED beats PAUSED, which the root tells, beats the rest."""
        if row.state != CLOSED and self.root_of(row).held:
            return PAUSED
        return row.state

    def tree(self, row: ProgramRow) -> Iterator[ProgramRow]:
        """A program and all below it."""
        stack = [row.program_id]
        while stack:
            program_id = stack.pop()
            found = self.rows.get((row.tenant, program_id))
            if found is not None:
                yield found
            stack += sorted(self._children.get((row.tenant, program_id), ()))

    def has_children(self, row: ProgramRow) -> bool:
        """True while a row below it is kept."""
        return bool(self._children.get((row.tenant, row.program_id)))

    def page(self, tenant: str, after: str, size: int, wanted: set[int]) -> tuple[list[ProgramRow], str]:
        """Rows after an id in order of id, in a `wanted` state (none = all but CLOSED); and where the next page begins.

        The second is empty at the end.
        """
        ids = self._ids.get(tenant, [])
        found: list[ProgramRow] = []
        at = begin = bisect_right(ids, after)
        while at < len(ids) and len(found) < size and at - begin < MAX_PAGE_SCAN:
            row = self.rows[(tenant, ids[at])]
            state = self.state_of(row)
            if state in wanted if wanted else state != CLOSED:
                found.append(row)
            at += 1
        return found, ids[at - 1] if begin < at < len(ids) else ""

    def calls_on(self, engine_id: str) -> dict[str, Key]:
        """Calls in flight on an engine, by id, with the keys of their rows; stays true as they come and go."""
        return self._on_engine.setdefault(engine_id, {})

    # -- changing ------------------------------------------------------------------------------------------------

    def restore(self, rows: Iterable[ProgramRow]) -> None:
        """Takes in what the store holds; before anything else."""
        for row in rows:
            self._insert(row, ordered=False)
            for call in row.calls.values():
                self._count_call(row, call)
        for ids in self._ids.values():
            ids.sort()

    def _insert(self, row: ProgramRow, *, ordered: bool = True) -> None:
        key = (row.tenant, row.program_id)
        self.rows[key] = row
        ids = self._ids.setdefault(row.tenant, [])
        if ordered:
            insort(ids, row.program_id)
        else:
            ids.append(row.program_id)
        if row.parent:
            self._children.setdefault((row.tenant, row.parent), set()).add(row.program_id)
        if row.idempotency_key:
            self.opened_with[(row.tenant, row.idempotency_key)] = row.program_id
        if row.held:
            self.held.add(key)
        self.live += row.state != CLOSED
        self.busy += bool(row.calls)

    def _remove(self, row: ProgramRow) -> None:
        """A closed row without calls or children is forgotten."""
        key = (row.tenant, row.program_id)
        del self.rows[key]
        ids = self._ids[row.tenant]
        del ids[bisect_right(ids, row.program_id) - 1]
        self._children.pop(key, None)
        if row.parent:
            self._children.get((row.tenant, row.parent), set()).discard(row.program_id)
        if row.idempotency_key:
            self.opened_with.pop((row.tenant, row.idempotency_key), None)

    def _add_call(self, row: ProgramRow, call: CallRow) -> None:
        self.busy += not row.calls
        row.calls[call.call_id] = call
        self._count_call(row, call)

    def _count_call(self, row: ProgramRow, call: CallRow) -> None:
        key = (row.tenant, row.program_id)
        self.open_calls += 1
        self.running_calls += call.running
        self.call_bytes[key] = self.call_bytes.get(key, 0) + call_bytes(call)
        self.calls_on(call.engine_id)[call.call_id] = key

    def _drop_call(self, row: ProgramRow, call: CallRow) -> None:
        del row.calls[call.call_id]
        self.open_calls -= 1
        if row.calls:
            self.call_bytes[(row.tenant, row.program_id)] -= call_bytes(call)
        else:
            self.call_bytes.pop((row.tenant, row.program_id), None)
        self.running_calls -= call.running
        self.busy -= not row.calls
        self.calls_on(call.engine_id).pop(call.call_id, None)

    def _move_call(self, row: ProgramRow, call: CallRow, engine_id: str, running: bool) -> None:
        if call.engine_id != engine_id:
            self.calls_on(call.engine_id).pop(call.call_id, None)
            self.calls_on(engine_id)[call.call_id] = (row.tenant, row.program_id)
            call.engine_id = engine_id
        self.running_calls += running - call.running
        call.running = running
