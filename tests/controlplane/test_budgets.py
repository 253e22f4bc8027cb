"""Budgets of trees: a tree is paused exactly while its account has passed its limits, whatever comes in which order."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving.contract.budgets import UNLIMITED, Budget
from agentserving.contract.ids import ProgramId
from agentserving_controlplane.errors import BudgetSpentError, ConflictError, ExistsError, InvalidError
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.budgets import Addition
from agentserving_controlplane.table.expiry import SPENT_PATIENCE_US
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.rows import CallRow
from agentserving_controlplane.table.states import Outcome, ProgramState
from controlplane.table_builders import (
    Disk,
    S,
    admit,
    at,
    check_invariants,
    end,
    key,
    limits,
    open_program,
    report_of,
    snapshot,
)
from hypothesis import given
from hypothesis import strategies as st

PROGRAMS = ("root", "child", "grandchild")


def tree(**limit: int) -> ProcessTable:
    """A root with a budget, its child and grandchild."""
    table = ProcessTable(1)
    open_program(table, "root", budget=Budget(**limit))
    open_program(table, "child", parent="root")
    open_program(table, "grandchild", parent="child")
    return table


def run(table: ProcessTable, program: str, *, service_us: int = 0, tokens: int = 0, **fields: Any) -> None:
    """A call from its admission to its engine's final report."""
    call = admit(table, program, **fields)
    table.report(report_of(call, program, service_us, prompt_tokens=tokens), at(0))


def state(table: ProcessTable, program: str) -> ProgramState:
    return table.index.state_of(table.rows[key(program)])


def add(table: ProcessTable, program: str = "root", id: str = "", digest: str = "d", **amounts: int) -> None:
    table.programs.resume(table.rows[key(program)], Addition(Budget(**amounts), id, digest))


# -- any order of events ---------------------------------------------------------------------------------------------


class Model:
    """What a tree should have used: of each call the largest counters that were reported, once it has ended."""

    def __init__(self, limit: Budget) -> None:
        self.limit = limit
        self.calls: dict[str, tuple[int, int]] = {}
        self.ended: set[str] = set()

    @property
    def spent(self) -> Budget:
        charged = [self.calls[call] for call in self.ended]
        return Budget(
            engine_us=sum(service for service, _ in charged), tokens=sum(tokens for _, tokens in charged),
            calls=len(charged),
        )  # fmt: skip


EVENTS = st.lists(
    st.tuples(
        # Calls begin and end more often than anything else happens, so that most histories spend their budget.
        st.sampled_from(
            (
                "admit",
                "admit",
                "admit",
                "progress",
                "finish",
                "finish",
                "finish again",
                "end early",
                "add",
                "resume",
                "crash",
            )
        ),
        st.integers(0, 7),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    min_size=12,
    max_size=40,
)


class History:
    """Applies events to a table and to the model. A crash may happen at any time; all until then has been stored."""

    def __init__(self, limit: Budget) -> None:
        self.table, self.disk, self.model = tree(), Disk(), Model(limit)
        budgets.give(self.table.rows[key("root")], limit)
        self.running: dict[str, tuple[CallRow, str]] = {}
        self.over: dict[str, tuple[CallRow, str]] = {}
        # Ended here first: their engines still add.
        self.late: set[str] = set()

    def admit(self, pick: int, *_: int) -> None:
        program, model = PROGRAMS[pick % 3], self.model
        soon = Budget(
            tokens=model.spent.tokens, engine_us=model.spent.engine_us, calls=model.spent.calls + len(self.running)
        )
        if model.limit.is_spent(soon):
            before = snapshot(self.table)
            with pytest.raises(BudgetSpentError) as refused:
                admit(self.table, program)
            assert (refused.value.budget.spent, snapshot(self.table)) == (model.spent, before)
            return
        call = admit(self.table, program)
        self.running[call.call_id] = call, program
        model.calls[call.call_id] = 0, 0

    def report(self, call_id: str, service_us: int, tokens: int, outcome: Outcome) -> None:
        """Counters grow by these."""
        call, program = (self.running | self.over)[call_id]
        had_us, had = self.model.calls[call_id]
        now = had_us + service_us, had + tokens
        if call_id in self.running or call_id in self.late:
            self.model.calls[call_id] = now
        self.table.report(
            report_of(call, program, now[0], outcome, root="root", prompt_tokens=now[1] // 2,
                      output_tokens=now[1] - now[1] // 2), at(0),
        )  # fmt: skip

    def progress(self, pick: int, service_us: int, tokens: int) -> None:
        known = [*self.running, *self.late]
        if known:
            self.report(known[pick % len(known)], service_us, tokens, Outcome.NONE)

    def finish(self, pick: int, service_us: int, tokens: int) -> None:
        if self.running:
            call_id = list(self.running)[pick % len(self.running)]
            self.report(call_id, service_us, tokens, Outcome.COMPLETED)
            self.model.ended.add(call_id)
            self.over[call_id] = self.running.pop(call_id)

    def finish_again(self, pick: int, service_us: int, tokens: int) -> None:
        """A repeated report of a call that has ended, or the last one of a call that ended here first."""
        if self.over:
            call_id = list(self.over)[pick % len(self.over)]
            self.report(call_id, service_us if call_id in self.late else 0, tokens if call_id in self.late else 0,
                        Outcome.COMPLETED)  # fmt: skip
            self.late.discard(call_id)

    def end_early(self, pick: int, *_: int) -> None:
        """Its sender ends a call that its engine has reported."""
        reported = [each for each, (call, program) in self.running.items()
                    if self.table.rows[key(program)].calls[each].boot_id]  # fmt: skip
        if reported:
            call_id = reported[pick % len(reported)]
            end(self.table, self.running[call_id][1], call_id)
            self.model.ended.add(call_id)
            self.late.add(call_id)
            self.over[call_id] = self.running.pop(call_id)

    def add(self, pick: int, more: int, digest: int) -> None:
        """Ids and digests repeat, so some additions are repetitions."""
        digest %= 2
        id, limit = f"a{pick}", self.model.limit
        unit = next(name for name in ("tokens", "engine_us", "calls") if getattr(limit, name))
        known = (self.table.rows[key("root")].budget or budgets.BudgetRow()).additions
        grown = Budget(**{name: getattr(limit, name) + (more if name == unit else 0)
                          for name in ("tokens", "engine_us", "calls")})  # fmt: skip
        if known.get(id, str(digest)) != str(digest):
            with pytest.raises(ExistsError):
                add(self.table, PROGRAMS[pick % 3], id, str(digest), **{unit: more})
            return
        after = limit if id in known else grown
        if after.is_spent(self.model.spent):
            with pytest.raises(ConflictError, match="stays paused"):
                add(self.table, PROGRAMS[pick % 3], id, str(digest), **{unit: more})
            return
        add(self.table, PROGRAMS[pick % 3], id, str(digest), **{unit: more})
        self.model.limit = after

    def resume(self, *_: int) -> None:
        if self.model.limit.is_spent(self.model.spent):
            with pytest.raises(ConflictError, match="stays paused"):
                add(self.table, "child")
        else:
            add(self.table, "child")

    def crash(self, *_: int) -> None:
        self.disk.write(self.table)
        self.table = self.disk.restored(self.table.epoch + 1)
        self.running = {
            call_id: (self.table.rows[key(program)].calls[call_id], program)
            for call_id, (_, program) in self.running.items()
        }

    def check(self) -> None:
        root = self.table.rows[key("root")]
        assert (budgets.limit_of(root), budgets.spent_of(root)) == (self.model.limit, self.model.spent)
        paused = self.model.limit.is_spent(self.model.spent)
        assert {state(self.table, each) is ProgramState.PAUSED for each in PROGRAMS} == {paused}
        check_invariants(self.table)


LIMITS = st.builds(
    Budget, tokens=st.sampled_from((0, 9)), engine_us=st.sampled_from((0, 9)), calls=st.sampled_from((0, 2))
).filter(bool)


@given(LIMITS, EVENTS)
def test_a_tree_is_paused_exactly_while_its_account_has_passed_its_limits(
    limit: Budget, events: list[tuple[str, int, int, int]]
) -> None:
    history = History(limit)
    history.check()
    for event, *arguments in events:
        getattr(history, event.replace(" ", "_"))(*arguments)
        history.check()
    history.crash()
    history.check()


# -- cases -----------------------------------------------------------------------------------------------------------


def test_calls_in_flight_run_to_their_end_and_are_what_a_budget_is_overshot_by() -> None:
    table = tree(tokens=100)
    calls = [(admit(table, name), name) for name in ("root", "child", "child")]
    for call, name in calls:
        table.report(report_of(call, name, prompt_tokens=100), at(0))
    assert budgets.spent_of(table.rows[key("root")]).tokens == 300
    assert table.totals.budgets_spent == 1
    with pytest.raises(BudgetSpentError, match=r"300 of 100 tokens.*agentserving resume root --add tokens=100k"):
        admit(table, "grandchild")


def test_a_budget_of_calls_is_not_overshot() -> None:
    table = tree(calls=2)
    first = admit(table, "root")
    admit(table, "child")
    with pytest.raises(BudgetSpentError, match="with 2 calls in flight"):
        admit(table, "child")
    # Retried before its first byte: the new attempt takes the place of the old one.
    again = admit(table, "root", retry_of_call_id=first.call_id)
    assert (again.attempt, state(table, "root")) == (2, ProgramState.ACTIVE)
    # An engine refused it, and nothing was computed: another call may take its place.
    end(table, "root", again.call_id, Outcome.REJECTED)
    run(table, "root")
    assert state(table, "root") is ProgramState.ACTIVE


def test_a_calls_budget_is_its_trees_and_the_first_counts() -> None:
    table = ProcessTable(1)
    admit(table, "agent", implicit=True, parent_program_id=ProgramId("main"), budget=Budget(tokens=5))
    assert budgets.limit_of(table.rows[key("main")]) == Budget(tokens=5)
    assert table.rows[key("agent")].budget is None
    admit(table, "agent", budget=Budget(tokens=500, calls=1))
    assert budgets.limit_of(table.rows[key("main")]) == Budget(tokens=5)
    open_program(table, "later")
    run(table, "later", tokens=70)
    with pytest.raises(BudgetSpentError, match="70 of 60 tokens"):
        admit(table, "later", budget=Budget(tokens=60))
    admit(table, "later", budget=Budget(tokens=71))
    run(table, "later", tokens=1)
    assert state(table, "later") is ProgramState.PAUSED


def test_a_sub_agent_has_no_budget_of_its_own() -> None:
    table = tree(tokens=5)
    with pytest.raises(InvalidError, match="a sub-agent spends its root's"):
        open_program(table, "other", parent="child", budget=Budget(calls=1))
    with pytest.raises(InvalidError, match=r"budget\.tokens"):
        open_program(table, "other", budget=Budget(tokens=-1))


def test_a_default_limits_roots_for_what_they_are_not_given() -> None:
    table = ProcessTable(1)
    table.programs.default_budget = lambda tenant: Budget(tokens=7, calls=3)
    open_program(table, "root", budget=Budget(tokens=100))
    open_program(table, "child", parent="root")
    admit(table, "implicit", implicit=True)
    assert budgets.limit_of(table.rows[key("root")]) == Budget(tokens=100, calls=3)
    assert budgets.limit_of(table.rows[key("implicit")]) == Budget(tokens=7, calls=3)
    assert table.rows[key("child")].budget is None


def test_a_program_known_from_an_engines_report_alone_has_the_default_and_is_charged() -> None:
    before = ProcessTable(1)
    call = admit(before, "p", implicit=True)
    after = ProcessTable(2)
    after.programs.default_budget = lambda tenant: Budget(tokens=7)
    after.report(report_of(call, "p", prompt_tokens=9), at(0))
    assert state(after, "p") is ProgramState.PAUSED


def test_what_an_engine_adds_after_the_sender_has_ended_a_call_is_charged() -> None:
    table = tree(tokens=100)
    call = admit(table, "child")
    table.report(report_of(call, "child", 5, Outcome.NONE, prompt_tokens=40), at(0))
    end(table, "child", call.call_id)
    assert budgets.spent_of(table.rows[key("root")]) == Budget(tokens=40, engine_us=5, calls=1)
    table.report(report_of(call, "child", 9, Outcome.CANCELLED, prompt_tokens=40, output_tokens=60), at(0))
    assert budgets.spent_of(table.rows[key("root")]) == Budget(tokens=100, engine_us=9, calls=1)
    assert state(table, "child") is ProgramState.PAUSED


def test_an_addition_ends_a_pause_by_a_person_too_and_is_refused_for_a_unit_without_a_limit() -> None:
    table = tree(tokens=10)
    run(table, "root", tokens=10)
    table.programs.pause(table.rows[key("child")], True)
    with pytest.raises(InvalidError, match="no budget of calls"):
        add(table, calls=5, tokens=5)
    assert table.rows[key("root")].paused
    add(table, tokens=5)
    assert state(table, "child") is ProgramState.ACTIVE
    assert not table.rows[key("root")].paused


def test_additions_without_an_id_are_added_each_time_and_old_ids_are_forgotten() -> None:
    table = tree(tokens=10)
    add(table, tokens=1)
    add(table, tokens=1)
    for number in range(budgets.MAX_ADDITIONS + 1):
        add(table, id=str(number), tokens=1)
    row = table.rows[key("root")].budget
    assert row is not None
    assert (row.tokens, next(iter(row.additions))) == (10 + 2 + budgets.MAX_ADDITIONS + 1, "1")
    with pytest.raises(InvalidError, match="at most 128 bytes"):
        add(table, id="x" * 129, tokens=1)


def test_a_spent_program_waits_a_day_for_an_addition_and_expires_then() -> None:
    table, age = tree(tokens=10), limits(idle_s=10)
    run(table, "root", tokens=10)

    def due(now: int) -> list[str]:
        table.expiring.schedule_marked(age, 100)
        return [row.program_id for row in table.expiring.take_due(age, at(now), 100)[1]]

    assert due(SPENT_PATIENCE_US - S) == []
    assert sorted(due(SPENT_PATIENCE_US + S)) == sorted(PROGRAMS)
    add(table, tokens=1)
    assert sorted(due(SPENT_PATIENCE_US + S)) == sorted(PROGRAMS)
    assert due(5 * S) == []


def test_a_spent_program_that_has_ended_is_not_opened_again_before_an_addition() -> None:
    table = ProcessTable(1)
    admitted = admit(table, "p", implicit=True, budget=Budget(tokens=10))
    table.report(report_of(admitted, "p", prompt_tokens=10), at(0))
    table.programs.close(table.rows[key("p")], Outcome.EXPIRED, at(0))
    before = snapshot(table)
    with pytest.raises(BudgetSpentError):
        admit(table, "p", implicit=True)
    assert snapshot(table) == before
    add(table, "p", tokens=1)
    assert state(table, "p") is ProgramState.CLOSED
    admit(table, "p", implicit=True)
    assert state(table, "p") is ProgramState.ACTIVE
    check_invariants(table)


def test_without_a_budget_nothing_is_refused_and_what_a_tree_uses_is_known() -> None:
    table = tree()
    run(table, "grandchild", service_us=1 << 61, tokens=5)
    run(table, "grandchild", service_us=1 << 61, tokens=5)
    root = table.rows[key("root")]
    assert (budgets.state_of(root), budgets.warning_of(root), budgets.limit_of(root)) == (None, None, UNLIMITED)
    assert budgets.spent_of(root) == Budget(tokens=10, engine_us=1 << 51, calls=2)


def test_a_warning_begins_at_four_fifths() -> None:
    table = tree(tokens=10, calls=100)
    root = table.rows[key("root")]
    run(table, "root", tokens=7)
    assert budgets.warning_of(root) is None
    run(table, "child", tokens=1)
    warning = budgets.warning_of(root)
    assert warning is not None
    assert warning.spent == Budget(tokens=8, calls=2)
