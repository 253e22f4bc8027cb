"""Budgets as text and as headers: what is written is read, and a mistake is refused, never ignored."""

from __future__ import annotations

import re

import pytest
from agentserving.contract.budgets import (
    MAX_AMOUNT,
    UNLIMITED,
    Budget,
    BudgetState,
    in_words,
    parse,
    remaining,
    text_of,
)
from hypothesis import given
from hypothesis import strategies as st

AMOUNT = st.integers(0, 10**12)
BUDGETS = st.builds(Budget, tokens=AMOUNT, engine_us=AMOUNT, calls=AMOUNT).filter(bool)


@given(BUDGETS)
def test_every_budget_is_read_as_it_is_written(budget: Budget) -> None:
    assert parse(text_of(budget)) == budget


def test_budgets_are_written_with_suffixes_fractions_and_spaces() -> None:
    assert parse("tokens=200k, engine-seconds = 1.5 ,calls=50") == Budget(tokens=200_000, engine_us=1_500_000, calls=50)
    assert parse("tokens=1.5M") == Budget(tokens=1_500_000)
    assert text_of(UNLIMITED) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no part of a budget"),
        ("200k", "'200k' is no part of a budget: write tokens=200k"),
        ("token=5", "'token=5' is no part of a budget"),
        ("tokens=5,tokens=6", "tokens is given twice"),
        ("tokens=0", "a positive number is needed"),
        ("tokens=-5", "a positive number is needed"),
        ("tokens=1e9", "a positive number is needed"),
        ("calls=0.2", "a positive number is needed"),
        ("tokens=nan", "a positive number is needed"),
        (f"tokens={MAX_AMOUNT + 2}", "a positive number is needed"),
        ("engine-seconds=9999999999999999", "a positive number is needed"),
        ("tokens=5,", "'' is no part of a budget"),
    ],
)
def test_a_mistake_is_refused_with_what_to_write(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(text)


@given(BUDGETS, BUDGETS)
def test_a_budget_is_spent_exactly_when_its_share_is_one_and_nothing_remains_of_a_unit(
    limit: Budget, spent: Budget
) -> None:
    assert limit.is_spent(spent) == (limit.share(spent) >= 1)
    shown = dict(part.split(";", 1) for part in remaining(BudgetState(limit=limit, spent=spent)).split(", "))
    assert ("tokens" in shown) == bool(limit.tokens)
    if limit.tokens:
        assert shown["tokens"] == f"remaining={max(0, limit.tokens - spent.tokens)};limit={limit.tokens}"


def test_what_remains_is_a_list_of_structured_fields_and_words_say_what_is_spent() -> None:
    state = BudgetState(
        limit=Budget(tokens=200_000, engine_us=300_000_000, calls=50),
        spent=Budget(tokens=180_000, engine_us=4_200_000, calls=60),
    )
    assert remaining(state) == (
        "tokens;remaining=20000;limit=200000, engine-seconds;remaining=295.800;limit=300.000,"
        " calls;remaining=0;limit=50"
    )
    assert in_words(state) == "180000 of 200000 tokens, 4.2 of 300 engine-seconds, 60 of 50 calls"


@given(BUDGETS, BUDGETS)
def test_a_default_fills_in_only_what_is_not_limited(own: Budget, default: Budget) -> None:
    both = own.or_else(default)
    for unit in ("tokens", "engine_us", "calls"):
        assert getattr(both, unit) == (getattr(own, unit) or getattr(default, unit))
