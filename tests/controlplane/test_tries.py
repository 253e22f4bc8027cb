"""One call, several engines: it ends once and is charged with one try, in whatever order reports come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest
from agentserving.contract.ids import CallId, EngineId
from agentserving.contract.policy import Accounting
from agentserving_controlplane.table import tries
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.endings import Endings
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.rows import CallRow, ProgramRow
from agentserving_controlplane.table.states import Outcome
from controlplane.table_builders import DEFAULT, Disk, at, check_invariants, key, report_of
from hypothesis import given, settings
from hypothesis import strategies as st

E1, E2, E3 = EngineId("e1"), EngineId("e2"), EngineId("e3")
ENGINES = [E1, E2, E3]
FINAL = [Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED]


def table_with_call(engines: list[EngineId]) -> tuple[ProcessTable, ProgramRow, CallRow]:
    table = ProcessTable(1, Accounting.SUM)
    table.programs.endings = Endings(0)
    plan = table.plan_admission(AdmissionRequest(tenant=DEFAULT, program_id=key("p").program_id, implicit=True))
    call = table.commit(plan, engines[0], at(0), engines[1:])
    return table, table.rows[key("p")], call


def said(call: CallRow, engine_id: EngineId, service_us: int, outcome: Outcome = Outcome.NONE) -> CallReport:
    more = {"engine_id": engine_id, "boot_id": f"boot of {engine_id}", "engine_ids": tuple(ENGINES)}
    return report_of(call, "p", service_us, outcome, running=not outcome, **more)


def test_a_first_engine_that_failed_before_a_retry_does_not_end_the_call() -> None:
    table, row, call = table_with_call([E1, E2])
    table.report(said(call, E1, 5, Outcome.FAILED), at(1))
    assert (table.open_calls, tries.is_over(call)) == (1, True)
    table.report(said(call, E2, 3), at(2))
    assert (call.engine_id, call.service_us, list(table.index.calls_on(E1))) == (E2, 3, [])
    table.report(said(call, E2, 8, Outcome.COMPLETED), at(3))
    assert (table.open_calls, row.calls_completed, row.total_service_us) == (0, 1, 8)
    check_invariants(table)


def test_a_cancelled_program_is_charged_when_its_engine_aborts_the_call() -> None:
    table, row, call = table_with_call([E1, E2])
    table.report(said(call, E1, 3), at(1))
    table.programs.cancel(row, at(2))
    table.report(said(call, E1, 5, Outcome.CANCELLED), at(3))
    assert (table.open_calls, row.total_service_us, table.totals.outcomes) == (0, 5, {Outcome.CANCELLED: 1})
    check_invariants(table)


def test_a_client_that_leaves_while_tokens_come_ends_the_call() -> None:
    table, row, call = table_with_call([E1, E2])
    left = msgspec.structs.replace(said(call, E1, 5, Outcome.CANCELLED), output_tokens=2)
    table.report(left, at(1))
    assert (table.open_calls, row.total_service_us, row.output_tokens) == (0, 5, 2)
    check_invariants(table)


def test_a_first_engine_that_is_heard_only_after_the_second_changes_nothing() -> None:
    table, row, call = table_with_call([E1, E2])
    table.report(said(call, E2, 3), at(1))
    for late in (said(call, E1, 50), said(call, E1, 60, Outcome.FAILED)):
        assert table.report(late, at(2)) is None
    assert (call.engine_id, call.service_us, call.running) == (E2, 3, True)
    table.report(said(call, E2, 8, Outcome.COMPLETED), at(3))
    assert (row.calls_completed, row.total_service_us, table.totals.outcomes) == (1, 8, {Outcome.COMPLETED: 1})


@pytest.mark.parametrize("order", [[E1, E2], [E2, E1]])
def test_of_two_engines_that_both_completed_one_is_charged(order: list[EngineId]) -> None:
    table, row, call = table_with_call([E1, E2])
    for engine_id in order:
        table.report(said(call, engine_id, 10 if engine_id == E1 else 20, Outcome.COMPLETED), at(1))
    assert (row.calls_completed, row.total_service_us) == (1, 10 if order[0] == E1 else 20)


def test_a_call_fails_when_its_last_engine_has_failed() -> None:
    table, row, call = table_with_call(ENGINES)
    for service_us, engine_id in enumerate(ENGINES, start=1):
        assert table.open_calls == 1
        table.report(said(call, engine_id, service_us, Outcome.FAILED), at(1))
    assert (table.open_calls, row.calls_completed, row.total_service_us) == (0, 1, 3)
    assert table.totals.outcomes == {Outcome.FAILED: 1}


def test_a_retry_outside_the_order_of_the_ticket_is_followed() -> None:
    table, row, call = table_with_call([E1, E2])
    table.report(said(call, E2, 4, Outcome.FAILED), at(1))
    table.report(said(call, E1, 1), at(2))
    assert (table.open_calls, call.engine_id) == (1, E1)
    table.report(said(call, E1, 9, Outcome.COMPLETED), at(3))
    assert (row.calls_completed, row.total_service_us) == (1, 9)


def test_a_ticket_for_one_engine_leaves_the_row_as_small_as_before() -> None:
    _, _, call = table_with_call([E1])
    assert (call.engines, call.failed) == ([], {})
    assert tries.fail(call, E1, Outcome.FAILED)


@dataclass
class Trial:
    """What each engine says about a call, in its own order; engines are tried in the order of the ticket."""

    scripts: dict[EngineId, list[tuple[int, Outcome]]] = field(default_factory=dict)

    @property
    def completed(self) -> set[int]:
        return {script[-1][0] for script in self.scripts.values() if script[-1][1] is Outcome.COMPLETED}


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    trial = Trial()
    for engine_id in ENGINES[: draw(st.integers(1, 3))]:
        if draw(st.booleans()) or engine_id == E1:
            steps = draw(st.lists(st.integers(0, 30), max_size=3).map(sorted))
            outcome = draw(st.sampled_from(FINAL))
            trial.scripts[engine_id] = [(us, Outcome.NONE) for us in steps] + [(100 + len(trial.scripts), outcome)]
    return trial


def interleaved(trial: Trial, data: st.DataObject) -> Iterator[tuple[EngineId, int, Outcome]]:
    """Engines speak in any order among each other, and each repeats itself after a reconnection."""
    position = dict.fromkeys(trial.scripts, 0)
    while waiting := [each for each, at_ in position.items() if at_ < len(trial.scripts[each])]:
        engine_id = data.draw(st.sampled_from(waiting))
        yield (engine_id, *trial.scripts[engine_id][position[engine_id]])
        position[engine_id] += data.draw(st.sampled_from([1, 1, 1, 0]))
    for engine_id in data.draw(st.permutations(list(trial.scripts))):
        yield (engine_id, *trial.scripts[engine_id][-1])


@given(trial=trials(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_in_any_interleaving_a_call_ends_once_and_is_charged_with_one_try(trial: Trial, data: st.DataObject) -> None:
    """Restarts included; one that lost the admission adopts the call by a report. What is not ended by reports is ended
    by EndCall or by time."""
    table, row, call = table_with_call(ENGINES)
    first, disk, epoch, endings = call, Disk(), 1, 0
    if data.draw(st.booleans()):
        disk.write(table)
    for engine_id, service_us, outcome in interleaved(trial, data):
        table.report(said(first, engine_id, service_us, outcome), at(1))
        check_invariants(table)
        # Reports are repeated until the change that they made is stored.
        disk.write(table)
        if data.draw(st.sampled_from([False, False, True])):
            endings += table.totals.calls_completed
            epoch += 1
            table = disk.restored(epoch, accounting=Accounting.SUM)
            check_invariants(table)
    row = table.rows[key("p")]
    ended_by_report = not row.calls
    if row.calls:
        call = row.calls[CallId(first.call_id)]
        assert tries.is_over(call), "an engine that ended its try without an answer leaves the call to the next one"
        table.end_call(key("p"), call.call_id, Outcome.FAILED, at(2))
    endings += table.totals.calls_completed
    assert (row.calls_completed, endings, table.open_calls) == (1, 1, 0)
    finals = {script[-1][0] for script in trial.scripts.values()}
    assert row.total_service_us in finals
    assert row.attained_service_us == row.total_service_us
    if trial.completed:
        assert ended_by_report
        assert row.total_service_us in trial.completed, "an answer is what is charged"
    check_invariants(table)
