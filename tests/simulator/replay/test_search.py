"""The search turns one knob after the other, is bounded, and keeps what it has unless something is clearly better."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from agentserving.contract.policy import ATLAS, FCFS, PLAS, PRESETS, Accounting, Level, Order, Policy, geometric_levels
from agentserving_replay.tuning.search import BETAS_MILLI, Geometry, OutOfTimeError, geometry, key, knobs, search

EVERY = list(PRESETS.values())


def far(policy: Policy, limit: float) -> float:
    """A landscape with one best place: plas, program arrival, beta 5, first level 60 ms."""
    base = policy.levels[0].upper_bound_us or 10**9
    return (
        10
        + (policy.accounting is not Accounting.SUM)
        + (policy.order is not Order.PROGRAM_ARRIVAL)
        + abs(policy.beta_milli - 5_000) / 1e5
        + abs(math.log(base / 60_000))
    )


def test_it_climbs_to_the_best_place_knob_by_knob() -> None:
    found = search(FCFS, EVERY, far, 200)
    best = found.best.policy
    assert (best.accounting, best.order, best.beta_milli) == (Accounting.SUM, Order.PROGRAM_ARRIVAL, 5_000)
    assert best.levels[0].upper_bound_us == 60_000
    assert found.ended == "no knob gains more"
    assert found.tried[0].policy is FCFS


def test_it_tries_no_policy_twice_and_not_more_than_it_may() -> None:
    found = search(FCFS, EVERY, far, 25)
    assert len(found.tried) == 25
    assert len({key(tried.policy) for tried in found.tried}) == 25
    assert found.ended == "all policies that may be tried were"


def test_what_is_better_by_a_hair_changes_nothing() -> None:
    found = search(ATLAS, EVERY, lambda policy, limit: 100.0 if policy == ATLAS else 99.6, 50)
    assert found.best is found.tried[0]
    assert found.best.policy is ATLAS


def test_a_cost_is_asked_with_the_best_so_far_as_limit() -> None:
    limits: list[float] = []

    def cost(policy: Policy, limit: float) -> float:
        limits.append(limit)
        return far(policy, limit)

    found = search(FCFS, EVERY, cost, 40)
    assert limits[0] == math.inf
    assert limits[1] == found.tried[0].cost
    assert limits == sorted(limits, reverse=True)


def test_when_the_time_is_over_it_gives_the_best_so_far() -> None:
    count = 0

    def cost(policy: Policy, limit: float) -> float:
        nonlocal count
        count += 1
        if count > 9:
            raise OutOfTimeError
        return far(policy, limit)

    found = search(FCFS, EVERY, cost, 100)
    assert found.ended == "the time was over"
    # Presets are tried in one round: the best of them stands once it is over.
    assert found.best.policy.accounting is Accounting.SUM
    assert len(found.tried) == 9


def test_every_policy_tried_has_the_interval_of_the_one_in_force() -> None:
    found = search(replace(PLAS, decision_interval_steps=8), EVERY, far, 60)
    assert {tried.policy.decision_interval_steps for tried in found.tried} == {8}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_knob_of_a_preset_gives_policies_that_can_be_executed(name: str) -> None:
    turned = dict(knobs(PRESETS[name]))
    assert {policy.beta_milli for policy in turned["beta"]} == set(BETAS_MILLI)
    assert all(turned.values())


def test_geometry_is_read_off_tables_that_have_one() -> None:
    assert geometry(PLAS) == Geometry(8, 250_000, 4)
    assert geometry(replace(PLAS, levels=geometric_levels(2, 90_000))) == Geometry(2, 90_000, 4)
    assert geometry(FCFS) is None
    assert geometry(replace(PLAS, levels=(Level(10_000, 9_000), Level(11_000, 1_000), Level()))) is None
    halves = Geometry(4, 60_000, 3, 50)
    assert geometry(replace(PLAS, levels=halves.levels())) == halves


def test_policies_that_do_the_same_are_one() -> None:
    assert key(FCFS) == key(replace(FCFS, name="other", accounting=Accounting.SUM, beta_milli=5000))
    assert key(PLAS) != key(ATLAS)
