"""A leader's default budgets, and what it says of a tree's: the tenant's come before the cluster's."""

from __future__ import annotations

import pytest
from agentserving.contract.budgets import Budget
from agentserving.contract.ids import ProgramId
from agentserving_controlplane.errors import BudgetSpentError
from agentserving_controlplane.metrics import exposition
from agentserving_controlplane.policy.tenants import TenantRow
from agentserving_controlplane.table import budgets
from agentserving_controlplane.table.budgets import Addition
from agentserving_controlplane.table.programs import OpenRequest
from agentserving_controlplane.table.states import Outcome
from controlplane.leader_builders import ACME, GLOBEX, admit, attach, leader, report
from controlplane.table_builders import key


async def test_the_tenants_default_comes_before_the_clusters_and_a_programs_own_before_both() -> None:
    async with leader(default_budget=Budget(tokens=1_000, calls=9)) as plane:
        await attach(plane)
        plane.tenants.put(TenantRow(tenant=ACME, program_tokens=500, program_engine_s=3))
        admit(plane, "a")
        admit(plane, "b", tenant=GLOBEX)
        own = Budget(tokens=7)
        await plane.programs.open(OpenRequest(tenant=ACME, program_id=ProgramId("c"), budget=own))
        limits = {row.program_id: budgets.limit_of(row) for row in plane.table.rows.values()}
        assert limits == {
            "a": Budget(tokens=500, engine_us=3_000_000, calls=9),
            "b": Budget(tokens=1_000, calls=9),
            "c": Budget(tokens=7, engine_us=3_000_000, calls=9),
        }


async def test_an_admission_warns_from_four_fifths_on_and_a_refusal_changes_nothing_but_the_count() -> None:
    async with leader() as plane:
        session = await attach(plane)
        first = admit(plane, "p", budget=Budget(tokens=10))
        assert first.budget is None
        await report(session, first, prompt_tokens=8, outcome=Outcome.COMPLETED)
        second = admit(plane, "p")
        assert second.budget is not None
        assert (second.budget.limit, second.budget.spent.tokens) == (Budget(tokens=10), 8)
        await report(session, second, prompt_tokens=8, outcome=Outcome.COMPLETED)
        await plane.commits.flush()
        with pytest.raises(BudgetSpentError) as refused:
            admit(plane, "p")
        assert (refused.value.reason, refused.value.budget.spent.tokens) == ("PROGRAM_BUDGET_SPENT", 16)
        assert plane.commits.pending == 0
        assert plane.table.rows[key("p", "acme")].calls == {}
        assert "agentserving_budgets_spent_total 1.0" in exposition(plane).decode()


async def test_the_trees_that_wait_for_an_addition_are_counted_until_one_comes_or_they_end() -> None:
    async with leader() as plane:
        session = await attach(plane)

        def spent() -> str:
            (line,) = [
                each for each in exposition(plane).decode().splitlines() if each.startswith("agentserving_spent_")
            ]
            return line.removeprefix("agentserving_spent_programs ")

        assert spent() == "0.0"
        for program in ("p", "q"):
            await report(session, admit(plane, program, budget=Budget(calls=1)), outcome=Outcome.COMPLETED)
        assert spent() == "2.0"
        await plane.programs.resume(key("p", "acme"), Addition(Budget(calls=1)))
        assert spent() == "1.0"
        await plane.programs.close(key("q", "acme"), Outcome.COMPLETED)
        assert spent() == "0.0"
