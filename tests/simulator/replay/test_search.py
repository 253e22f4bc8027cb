"""The search turns one knob at a time, is bounded, and changes the policy only for a clear gain."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from agentserving.contract.policy import ATLAS, FCFS, PLAS, PRESETS, Accounting, Level, Order, Policy, geometric_levels
from agentserving_replay.tuning.search import BETAS_MILLI, Geometry, OutOfTimeError, geometry, key, knobs, search

EVERY = list(PRESETS.values())


def far(policy: Policy, limit: float) -> float:
    """A cost with one minimum: plas, program arrival, beta 5, first level 60 ms."""
    base = policy.levels[0].upper_bound_us or 10**9
    return (
        10
        + (policy.accounting is not Accounting.SUM)
        + (policy.order is not Order.PROGRAM_ARRIVAL)
        + abs(policy.beta_milli - 5_000) / 1e5
        + abs(math.log(base / 60_000))
    )


def test_it_reaches_the_best_policy_knob_by_knob() -> None:
    found = search(FCFS, EVERY, far, 200)
    best = found.best.policy
    assert (best.accounting, best.order, best.beta_milli) == (Accounting.SUM, Order.PROGRAM_ARRIVAL, 5_000)
    assert best.levels[0].upper_bound_us == 60_000
    assert found.ended == "no knob gains more"
    assert found.tried[0].policy is FCFS


def test_it_tries_no_policy_twice_and_stops_at_its_limit() -> None:
    found = search(FCFS, EVERY, far, 25)
    assert len(found.tried) == 25
    assert len({key(tried.policy) for tried in found.tried}) == 25
    assert found.ended == "the limit on policies was reached"


def test_a_gain_within_the_margin_changes_nothing() -> None:
    found = search(ATLAS, EVERY, lambda policy, limit: 100.0 if policy == ATLAS else 99.6, 50)
    assert found.best is found.tried[0]
    assert found.best.policy is ATLAS


def test_the_best_cost_so_far_is_the_limit_of_the_next() -> None:
    limits: list[float] = []

    def cost(policy: Policy, limit: float) -> float:
        limits.append(limit)
        return far(policy, limit)

    found = search(FCFS, EVERY, cost, 40)
    assert limits[0] == math.inf
    assert limits[1] == found.tried[0].cost
    assert limits == sorted(limits, reverse=True)


def test_when_the_budget_is_spent_it_returns_the_best_so_far() -> None:
    count = 0

    def cost(policy: Policy, limit: float) -> float:
        nonlocal count
        count += 1
        if count > 9:
            raise OutOfTimeError
        return far(policy, limit)

    found = search(FCFS, EVERY, cost, 100)
    assert found.ended == "the budget was spent"
    # Presets are tried in one round, after which the best of them is kept.
    assert found.best.policy.accounting is Accounting.SUM
    assert len(found.tried) == 9


def test_every_policy_tried_has_the_decision_interval_of_the_current_one() -> None:
    found = search(replace(PLAS, decision_interval_steps=8), EVERY, far, 60)
    assert {tried.policy.decision_interval_steps for tried in found.tried} == {8}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_knob_of_a_preset_gives_valid_policies(name: str) -> None:
    turned = dict(knobs(PRESETS[name]))
    assert {policy.beta_milli for policy in turned["beta"]} == set(BETAS_MILLI)
    assert all(turned.values())


def test_the_geometry_of_geometric_levels_is_recognised() -> None:
    assert geometry(PLAS) == Geometry(8, 250_000, 4)
    assert geometry(replace(PLAS, levels=geometric_levels(2, 90_000))) == Geometry(2, 90_000, 4)
    assert geometry(FCFS) is None
    assert geometry(replace(PLAS, levels=(Level(10_000, 9_000), Level(11_000, 1_000), Level()))) is None
    halves = Geometry(4, 60_000, 3, 50)
    assert geometry(replace(PLAS, levels=halves.levels())) == halves


def test_policies_of_equal_behaviour_have_one_key() -> None:
    assert key(FCFS) == key(replace(FCFS, name="other", accounting=Accounting.SUM, beta_milli=5000))
    assert key(PLAS) != key(ATLAS)
