"""The budget of `program()`: sent with every call of the root, and never a reason for an agent to fail."""

from __future__ import annotations

import logging

import agentserving
import pytest
from agentserving.contract.budgets import Budget
from agentserving.programs import context

BUDGET = "x-agentserving-budget"


def test_every_call_of_the_program_carries_its_budget() -> None:
    with agentserving.program("a", control_plane="", budget=Budget(tokens=200_000, engine_us=1_500_000)) as program:
        assert program.headers()[BUDGET] == "tokens=200000,engine-seconds=1.5"
        call = context.begin_call()
        assert call is not None
        assert call.headers[BUDGET] == "tokens=200000,engine-seconds=1.5"
    with agentserving.program("a", control_plane="", budget="calls=5") as program:
        assert program.headers()[BUDGET] == "calls=5"
    with agentserving.program("a", control_plane="") as program:
        assert BUDGET not in program.headers()


def test_a_sub_agent_spends_its_roots_budget_and_its_own_is_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        agentserving.program("outer", control_plane="", budget="calls=5"),
        caplog.at_level(logging.WARNING, "agentserving"),
        agentserving.program("inner", control_plane="", program_id="inner", budget="calls=50") as inner,
    ):
        assert BUDGET not in inner.headers()
    assert caplog.messages[0] == "program inner is a sub-agent and spends its root's budget: calls=50 is ignored"


def test_a_budget_that_cannot_be_read_is_refused_before_the_program_begins() -> None:
    with pytest.raises(ValueError, match="'200k' is no part of a budget"):
        agentserving.program("a", control_plane="", budget="200k")
