"""The process table: one row per live program, and the account that decides who runs next.

Pure: time and epoch are given, nothing is read or written outside. Every method that changes rows adds their keys to
`dirty`; the caller writes those down. Reports are absolute, so hearing one twice, late or out of order changes nothing
(rows.py says how a call that was counted is told from one whose admission was lost).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agentserving.accounting import account_at_admit, charge_call
from agentserving.policy import Accounting

from agentserving_controlplane.errors import ConflictError, ExistsError, InvalidError, NotFoundError
from agentserving_controlplane.rows import MAX_ENGINES_KEPT, CallRow, ProgramRow, ThreadRow, call_parts, row_key

ACTIVE, TOOL_WAIT, PAUSED, CLOSED = 1, 2, 3, 4
COMPLETED, CANCELLED, FAILED, EXPIRED = 1, 2, 3, 4

PROGRAM_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
MAX_NAME_BYTES, MAX_THREADS, MAX_PARENTS, MAX_OPEN_CALLS = 128, 4096, 64, 4096
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Reported:
    """One call's counters as an engine tells them; `outcome` 0 while it goes on."""

    call_id: str
    attempt: int
    program_id: str
    tenant: str
    thread_id: str
    root: str
    attained_service_us: int
    engine_id: str
    boot_id: str = ""
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    level: int = 0
    running: bool = False
    outcome: int = 0


@dataclass(slots=True)
class Totals:
    """Since this process began."""

    programs_completed: int = 0
    calls_completed: int = 0
    reports_ignored: int = 0
    calls_adopted: int = 0
    calls_expired: int = 0
    outcomes: dict[int, int] = field(default_factory=dict)


class ProcessTable:
    """All live programs of all tenants."""

    def __init__(self, epoch: int, accounting: Accounting = Accounting.CRITICAL_PATH) -> None:
        self.epoch = epoch
        self.accounting = accounting
        self.rows: dict[tuple[str, str], ProgramRow] = {}
        self.dirty: set[tuple[str, str]] = set()
        self.totals = Totals()
        self.open_calls = 0
        self._children: dict[tuple[str, str], set[str]] = {}
        self._anonymous = 0

    # -- reading -------------------------------------------------------------------------------------------------

    def restore(self, rows: Iterable[ProgramRow]) -> None:
        """Takes in what the store holds; before anything else."""
        for row in rows:
            self._insert(row)
            self.open_calls += len(row.calls)

    def find(self, tenant: str, program_id: str) -> ProgramRow:
        """The row; NotFoundError for an unknown program and for one of another tenant alike."""
        row = self.rows.get((tenant, program_id))
        if row is None:
            raise NotFoundError("PROGRAM_NOT_FOUND", f"no program {program_id!r}: open it first", field="program_id")
        return row

    def root_of(self, row: ProgramRow) -> ProgramRow:
        """The row that holds the account of a program's tree."""
        return self.rows.get((row.tenant, row.root), row)

    def tree(self, row: ProgramRow) -> Iterator[ProgramRow]:
        """A program and all below it."""
        stack = [row.program_id]
        while stack:
            program_id = stack.pop()
            found = self.rows.get((row.tenant, program_id))
            if found is not None:
                yield found
            stack += sorted(self._children.get((row.tenant, program_id), ()))

    def _touch(self, row: ProgramRow) -> None:
        self.dirty.add((row.tenant, row.program_id))

    def _insert(self, row: ProgramRow) -> None:
        self.rows[(row.tenant, row.program_id)] = row
        if row.parent:
            self._children.setdefault((row.tenant, row.parent), set()).add(row.program_id)

    # -- programs ------------------------------------------------------------------------------------------------

    def anonymous_id(self) -> str:
        """An id for a program that brought none; never given twice."""
        self._anonymous += 1
        return f"p-{self.epoch:x}-{self._anonymous:x}"

    def open(
        self, tenant: str, program_id: str, now_us: int, *, name: str = "", parent: str = "", key: str = ""
    ) -> ProgramRow:
        """Opens a program; with the same idempotency key and facts again, gives the one there is."""
        program_id = program_id or self.anonymous_id()
        if PROGRAM_ID.fullmatch(program_id) is None:
            raise InvalidError("BAD_PROGRAM_ID", "program_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -", field="program_id")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidError("NAME_TOO_LONG", f"name: at most {MAX_NAME_BYTES} bytes", field="name")
        there = self.rows.get((tenant, program_id))
        if there is not None:
            if key and there.idempotency_key == key and (there.name, there.parent) == (name, parent):
                return there
            raise ExistsError("PROGRAM_EXISTS", f"program {program_id!r} is open already", field="program_id")
        root = program_id
        if parent:
            root = self._root_for_child(tenant, program_id, parent)
        row = ProgramRow(program_id, tenant, now_us, name, parent, root, idempotency_key=key, last_arrival_us=now_us)
        self._insert(row)
        self._touch(row)
        return row

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
        """No new calls; those in flight finish and are charged."""
        if row.state == CLOSED:
            return
        row.state, row.outcome, row.close_us = CLOSED, outcome, now_us
        self.totals.programs_completed += 1
        self._touch(row)

    def set_state(self, row: ProgramRow, state: int) -> None:
        """Pauses, resumes, or begins and ends a tool wait."""
        if row.state == CLOSED:
            raise ConflictError("PROGRAM_CLOSED", f"program {row.program_id!r} is closed", field="program_id")
        if row.state != state:
            row.state = state
            self._touch(row)

    # -- calls ---------------------------------------------------------------------------------------------------

    def admit(
        self,
        row: ProgramRow,
        now_us: int,
        *,
        engine_id: str,
        thread_id: str = "",
        parents: tuple[str, ...] = (),
        attempt: int = 1,
    ) -> CallRow:
        """Takes a call in, on an engine that has been chosen."""
        self.check_admittable(row, thread_id, parents)
        n = row.admitted.get(self.epoch, 0)
        row.admitted[self.epoch] = n + 1
        root = self.root_of(row)
        account = account_at_admit(self.accounting, root.attained_service_us)
        call_id = f"{row.program_id}.{self.epoch}.{n}"
        call = CallRow(call_id, attempt, thread_id, engine_id, account, now_us, now_us, parents=list(parents))
        row.calls[call_id] = call
        thread = row.threads.get(thread_id)
        if thread is None:
            thread = row.threads[thread_id] = ThreadRow(thread_id)
        thread.calls += 1
        row.last_arrival_us = now_us
        if row.state == TOOL_WAIT:
            row.state = ACTIVE
        if engine_id in row.engines:
            row.engines.remove(engine_id)
        row.engines.insert(0, engine_id)
        del row.engines[MAX_ENGINES_KEPT:]
        self.open_calls += 1
        self._touch(row)
        return call

    def check_admittable(self, row: ProgramRow, thread_id: str, parents: tuple[str, ...]) -> None:
        """Raises what `admit` would; before an engine is chosen."""
        if row.state == CLOSED:
            raise ConflictError(
                "PROGRAM_CLOSED", f"program {row.program_id!r} is closed: open another", field="program_id"
            )
        if len(row.calls) >= MAX_OPEN_CALLS:
            raise ConflictError("TOO_MANY_CALLS", f"a program has at most {MAX_OPEN_CALLS} calls in flight")
        if len(thread_id) > 128:
            raise InvalidError("BAD_THREAD_ID", "thread_id: at most 128 characters", field="thread_id")
        thread = row.threads.get(thread_id)
        if thread is None and len(row.threads) >= MAX_THREADS:
            raise ConflictError("TOO_MANY_THREADS", f"a program has at most {MAX_THREADS} threads", field="thread_id")
        if thread is not None and thread.joined:
            raise ConflictError("THREAD_JOINED", f"thread {thread_id!r} has been joined", field="thread_id")
        if len(parents) > MAX_PARENTS:
            raise InvalidError("TOO_MANY_PARENTS", f"at most {MAX_PARENTS} parents", field="parent_call_ids")
        for parent in parents:
            known = call_parts(parent)
            if known is None or known[0] != row.program_id or known[2] >= row.admitted.get(known[1], 0):
                raise NotFoundError(
                    "PARENT_CALL_NOT_FOUND", f"{parent!r} is no earlier call of this program", field="parent_call_ids"
                )

    def report(self, told: Reported, now_us: int) -> ProgramRow | None:
        """An engine's word on a call. Gives the row when it changed something."""
        parts = call_parts(told.call_id)
        if parts is None or min(told.service_us, told.wait_us, told.output_tokens, told.prompt_tokens) < 0:
            self.totals.reports_ignored += 1
            return None
        row = self.rows.get((told.tenant, told.program_id))
        call = row.calls.get(told.call_id) if row is not None else None
        if call is None:
            adopted = self._adopt(row, told, parts, now_us)
            if adopted is None:
                self.totals.reports_ignored += 1
                return None
            row, call = adopted
        assert row is not None
        if told.attempt < call.attempt:
            return None
        _raise_counters(call, told)
        call.heard_us = now_us
        if told.outcome:
            self._end(row, call, told.outcome, now_us)
        self._touch(row)
        return row

    def _adopt(
        self, row: ProgramRow | None, told: Reported, parts: tuple[str, int, int], now_us: int
    ) -> tuple[ProgramRow, CallRow] | None:
        """A call that the table does not know: counted already (None), or lost when a control plane died."""
        program_id, epoch, n = parts
        if epoch >= self.epoch or program_id != told.program_id:
            return None
        if row is None:
            root = told.root or program_id
            row = ProgramRow(program_id, told.tenant, now_us, root=root, last_arrival_us=now_us)
            if root != program_id and (told.tenant, root) not in self.rows:
                above = ProgramRow(root, told.tenant, now_us, root=root, last_arrival_us=now_us)
                self._insert(above)
                self._touch(above)
            self._insert(row)
        watermark = row.admitted.get(epoch, 0)
        if told.call_id in row.missing:
            row.missing.remove(told.call_id)
        elif n >= watermark:
            row.missing += [f"{program_id}.{epoch}.{i}" for i in range(max(watermark, n - 1000), n)]
            row.admitted[epoch] = n + 1
        else:
            return None
        call = CallRow(
            told.call_id, told.attempt, told.thread_id, told.engine_id, told.attained_service_us, now_us, now_us
        )
        row.calls[told.call_id] = call
        row.threads.setdefault(told.thread_id, ThreadRow(told.thread_id)).calls += 1
        self.open_calls += 1
        self.totals.calls_adopted += 1
        return row, call

    def end_call(self, row: ProgramRow, call_id: str, outcome: int, now_us: int) -> None:
        """Ends a call by somebody else's word than the engine's; charged with what was reported last."""
        call = row.calls.get(call_id)
        if call is not None:
            self._end(row, call, outcome, now_us)
            self._touch(row)

    def _end(self, row: ProgramRow, call: CallRow, outcome: int, now_us: int) -> None:
        del row.calls[call.call_id]
        self.open_calls -= 1
        root = self.root_of(row)
        root.attained_service_us = charge_call(
            self.accounting, root.attained_service_us, call.attained_service_us, call.service_us
        )
        root.account_wait_us += call.wait_us
        row.total_service_us += call.service_us
        row.wait_us += call.wait_us
        row.prompt_tokens += call.prompt_tokens
        row.cached_tokens += call.cached_tokens
        row.output_tokens += call.output_tokens
        row.preemptions += call.preemptions
        row.calls_completed += 1
        row.last_completion_us = now_us
        thread = row.threads.get(call.thread_id)
        if thread is not None:
            thread.service_us += call.service_us
            thread.wait_us += call.wait_us
        self.totals.calls_completed += 1
        self.totals.outcomes[outcome] = self.totals.outcomes.get(outcome, 0) + 1
        if root is not row:
            self._touch(root)
        if row.closing and not row.calls:
            self.close(row, COMPLETED, now_us)

    # -- expiry --------------------------------------------------------------------------------------------------

    def expire(self, now_us: int, *, idle_us: int, silent_us: int, retention_us: int) -> list[tuple[str, str]]:
        """Ends what nobody will end; gives the keys of rows that are gone. Looks at every row: call it rarely."""
        removed: list[tuple[str, str]] = []
        for key, row in list(self.rows.items()):
            for call in [c for c in row.calls.values() if now_us - c.heard_us > silent_us]:
                self.end_call(row, call.call_id, EXPIRED, now_us)
                self.totals.calls_expired += 1
            if row.calls:
                continue
            last = max(row.last_arrival_us, row.last_completion_us, row.open_us)
            if row.state == CLOSED:
                if now_us - row.close_us > retention_us and not self._children.get(key):
                    removed.append(key)
            elif row.state != PAUSED and now_us - last > idle_us * (6 if row.state == TOOL_WAIT else 1):
                self.close(row, EXPIRED, now_us)
        for key in removed:
            row = self.rows.pop(key)
            self.dirty.discard(key)
            if row.parent:
                self._children.get((row.tenant, row.parent), set()).discard(row.program_id)
        return removed

    def engine_lost(self, engine_id: str, boot_id: str, now_us: int) -> list[str]:
        """The engine's process is gone: its calls of that boot have failed. Gives their ids."""
        lost = []
        for row in self.rows.values():
            for call in [c for c in row.calls.values() if c.engine_id == engine_id and c.boot_id == boot_id]:
                self.end_call(row, call.call_id, FAILED, now_us)
                lost.append(call.call_id)
        return lost

    def take_dirty(self) -> list[ProgramRow]:
        """Rows changed since the last time."""
        rows = [self.rows[key] for key in self.dirty if key in self.rows]
        self.dirty.clear()
        return rows


def _raise_counters(call: CallRow, told: Reported) -> None:
    if told.attempt > call.attempt:
        call.attempt = told.attempt
    call.engine_id, call.boot_id = told.engine_id, told.boot_id or call.boot_id
    call.service_us = max(call.service_us, told.service_us)
    call.wait_us = max(call.wait_us, told.wait_us)
    call.prompt_tokens = max(call.prompt_tokens, told.prompt_tokens)
    call.cached_tokens = max(call.cached_tokens, told.cached_tokens)
    call.output_tokens = max(call.output_tokens, told.output_tokens)
    call.preemptions = max(call.preemptions, told.preemptions)
    call.level, call.running = told.level, told.running


__all__ = ["ProcessTable", "Reported", "row_key"]
