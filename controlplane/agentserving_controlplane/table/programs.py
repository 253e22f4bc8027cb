"""The life of programs: opened, held, closed; and which rows have changed. Pure.

Every method that changes rows notes them; the caller takes the changes and writes them down, rows that changed
together in one piece (`take_changes`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from agentserving_controlplane.errors import ConflictError, ExistsError, InvalidError, NotFoundError
from agentserving_controlplane.table.endings import ClosedProgram, Endings, origin_of
from agentserving_controlplane.table.program_index import ACTIVE, CLOSED, TOOL_WAIT, Key, ProgramIndex
from agentserving_controlplane.table.rows import ProgramRow

PROGRAM_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
MAX_NAME_BYTES, MAX_KEY_BYTES = 128, 128
MAX_DEPTH = 16


@dataclass(slots=True)
class Totals:
    """Since this process began."""

    programs_completed: int = 0
    calls_completed: int = 0
    reports_ignored: int = 0
    calls_adopted: int = 0
    calls_expired: int = 0
    outcomes: dict[int, int] = field(default_factory=dict)


class Programs(ProgramIndex):
    """The index, and what may be done to programs."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch
        self.totals = Totals()
        self._changed: dict[Key, None] = {}
        # Rows that changed with their root: neither may be written down without the other.
        self._bound: dict[Key, Key] = {}
        self._anonymous = 0
        # Where ends are told of, when somebody may want to know.
        self.endings: Endings | None = None

    def take_changes(self) -> list[list[ProgramRow]]:
        """Rows changed since the last time, in groups that belong into one transaction."""
        groups: dict[Key, list[ProgramRow]] = {}
        for key in self._changed:
            if key in self.rows:
                groups.setdefault(self._bound.get(key, key), []).append(self.rows[key])
        self._changed.clear()
        self._bound.clear()
        return list(groups.values())

    def _touch(self, row: ProgramRow, root: ProgramRow | None = None) -> None:
        key = (row.tenant, row.program_id)
        self._changed[key] = None
        if root is not None and root is not row:
            above = (root.tenant, root.program_id)
            self._changed[above] = None
            self._bound[key] = above

    def anonymous_id(self, tenant: str) -> str:
        """An id for a program that brought none; never given twice."""
        while True:
            self._anonymous += 1
            program_id = f"p-{self.epoch:x}-{self._anonymous:x}"
            if (tenant, program_id) not in self.rows:
                return program_id

    def open(
        self,
        tenant: str,
        program_id: str,
        now_us: int,
        *,
        name: str = "",
        parent: str = "",
        key: str = "",
        request: str = "",
    ) -> ProgramRow:
        """Opens a program; with the idempotency key and the request (its digest) of before, gives the one there is."""
        if len(key.encode()) > MAX_KEY_BYTES:
            raise InvalidError(
                "KEY_TOO_LONG", f"idempotency_key: at most {MAX_KEY_BYTES} bytes", field="idempotency_key"
            )
        before = self.rows.get((tenant, self.opened_with.get((tenant, key), ""))) if key else None
        if before is not None:
            if before.request == request:
                return before
            raise ExistsError(
                "IDEMPOTENCY_KEY_REUSED",
                f"idempotency_key: {key!r} opened program {before.program_id!r} with another request: use a new key",
                field="idempotency_key",
            )
        program_id = program_id or self.anonymous_id(tenant)
        self._check_new(tenant, program_id, name)
        root = self._root_for_child(tenant, program_id, parent) if parent else program_id
        row = ProgramRow(
            program_id, tenant, now_us, name, parent, root,
            idempotency_key=key, request=request, last_arrival_us=now_us,
        )  # fmt: skip
        self._insert(row)
        self._touch(row, self.rows.get((tenant, root)))
        return row

    def _check_new(self, tenant: str, program_id: str, name: str) -> None:
        if PROGRAM_ID.fullmatch(program_id) is None:
            raise InvalidError("BAD_PROGRAM_ID", "program_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -", field="program_id")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidError("NAME_TOO_LONG", f"name: at most {MAX_NAME_BYTES} bytes", field="name")
        if (tenant, program_id) in self.rows:
            raise ExistsError(
                "PROGRAM_EXISTS", f"program {program_id!r} is there already: choose another id", field="program_id"
            )

    def _root_for_child(self, tenant: str, program_id: str, parent: str) -> str:
        if parent == program_id:
            raise InvalidError(
                "CYCLIC_PARENT", f"program {program_id!r} cannot be its own parent", field="parent_program_id"
            )
        above = self.rows.get((tenant, parent))
        if above is None:
            raise NotFoundError("PARENT_NOT_FOUND", f"no parent program {parent!r}", field="parent_program_id")
        depth = 1
        step: ProgramRow | None = above
        while step is not None and step.parent and depth <= MAX_DEPTH:
            step = self.rows.get((tenant, step.parent))
            depth += 1
        if depth > MAX_DEPTH:
            raise InvalidError("TOO_DEEP", f"programs nest at most {MAX_DEPTH} deep", field="parent_program_id")
        return above.root

    def close(self, row: ProgramRow, outcome: int, now_us: int) -> None:
        """No new calls; those in flight finish and are charged. The end of a root ends its hold."""
        if row.state == CLOSED:
            return
        row.state, row.outcome, row.close_us = CLOSED, outcome, now_us
        self.live -= 1
        self.totals.programs_completed += 1
        if row.held:
            self.hold(row, False)
        self._touch(row)
        if self.endings is not None:
            origin = origin_of(row, self.root_of(row))
            self.endings.note(row.tenant, ClosedProgram(origin, outcome, now_us, len(row.calls)))

    def reopen(self, row: ProgramRow) -> None:
        """An id used again after its end is the same program, gone on."""
        if row.state == CLOSED:
            row.state, row.outcome, row.close_us = ACTIVE, 0, 0
            self.live += 1
            self._touch(row)

    def wait_for_tool(self, row: ProgramRow, waits: bool) -> None:
        """Begins or ends a tool wait."""
        self._check_open(row)
        state = TOOL_WAIT if waits else ACTIVE
        if row.state != state:
            row.state = state
            self._touch(row)

    def hold(self, row: ProgramRow, held: bool) -> ProgramRow:
        """Holds the tree of a program or lets it go; gives its root."""
        root = self.root_of(row)
        if held:
            self._check_open(row)
            self._check_open(root)
        if root.held != held:
            root.held = held
            key = (root.tenant, root.program_id)
            (self.held.add if held else self.held.discard)(key)
            self._touch(root)
        return root

    @staticmethod
    def _check_open(row: ProgramRow) -> None:
        if row.state == CLOSED:
            raise ConflictError(
                "PROGRAM_CLOSED", f"program {row.program_id!r} is closed: open another", field="program_id"
            )
