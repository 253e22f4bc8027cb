"""Levels from what finished programs took."""

from __future__ import annotations

import asyncio
import math
import random
import threading

import pytest
from agentserving.contract.policy import GITTINS, PLAS, Level, Policy, from_dict, level_of, to_dict
from agentserving.contract.policy_message import policy_from, policy_to
from agentserving.contract.ticket import IssuerKeys, verify
from agentserving.v1 import admin_service_pb2, call_service_pb2, program_service_pb2, types_pb2
from agentserving_controlplane.policy.gittins import (
    BASE_US,
    MAX_KNOWN_CLASSES,
    MAX_SAMPLES,
    MIN_SAMPLES,
    MIN_SIZE_US,
    Sizes,
    Survival,
    cost,
    levels,
    rank_of,
    with_ranks,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served_plane import PlayedEngine, ServedPlane

SECOND = 1_000_000
sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


def ranks(table: tuple[Level, ...]) -> list[int]:
    return [level.rank or 0 for level in table]


@settings(deadline=None)
@given(sizes, st.integers(0, 1200))
def test_the_cost_is_the_service_for_the_worth_of_ends_at_the_best_horizon(finished: list[int], attained: int) -> None:
    more = [size for size in finished if size > attained]
    ratios = [
        sum(min(size, horizon) - attained for size in more)
        / sum(1 / math.sqrt(max(size, MIN_SIZE_US)) for size in more if size <= horizon)
        for horizon in set(more)
    ]
    cost_us = cost(Survival.of(finished, ()), attained, sorted(set(finished)))
    assert cost_us**1.5 == pytest.approx(min(ratios, default=math.inf))


@settings(deadline=None)
@given(sizes, sizes, st.floats(0, 1500))
def test_programs_that_go_on_make_others_of_their_class_look_longer(
    finished: list[int], live: list[int], service: float
) -> None:
    alone, together = Survival.of(finished, ()), Survival.of(finished, live)
    assert together.at(service)[0] >= alone.at(service)[0] - 1e-6
    assert list(together.lasting) == sorted(together.lasting, reverse=True)


def test_of_programs_of_like_sizes_the_one_that_has_had_most_goes_first() -> None:
    dice = random.Random(1)
    table = levels(Survival.of([round(dice.gauss(16, 0.5) * SECOND) for _ in range(200)], ()))
    below = [rank for rank, level in zip(ranks(table), table, strict=True) if 0 < level.upper_bound_us <= 16 * SECOND]
    assert below == sorted(below, reverse=True)
    assert below[-1] < below[0]


def test_of_programs_whose_end_is_the_farther_the_more_they_had_the_least_goes_first() -> None:
    # The quantiles of a Pareto distribution without a mean.
    table = levels(Survival.of([round(SECOND / (1 - share / 1000)) for share in range(1000)], ()))
    known = ranks(table)[3:]
    assert known == sorted(known)


def test_ends_that_chance_put_together_do_not_let_old_programs_pass_new_ones() -> None:
    for seed in range(20):
        dice = random.Random(seed)
        # Most end early, whatever they have had; one in seven is long. Of so few, some end just behind some bound.
        drawn = [dice.gauss(1800, 100) if dice.random() < 0.15 else 20 + dice.expovariate(1 / 150) for _ in range(60)]
        table = levels(Survival.of([round(size * SECOND) for size in drawn], ()))
        new, old = level_of(table, 0), level_of(table, 300 * SECOND)
        assert ranks(table)[new] <= ranks(table)[old], seed


def test_sizes_that_are_not_known_leave_the_order_of_the_levels() -> None:
    table = with_ranks(PLAS.levels)
    assert ranks(table) == sorted(ranks(table))
    known = Sizes()
    for _ in range(MIN_SAMPLES - 1):
        known.end("few", SECOND)
    assert known.relevel(PLAS).classes == ()
    known.end("few", SECOND)
    assert [name for name, _ in known.relevel(PLAS).classes] == ["few"]


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 10**13), min_size=MIN_SAMPLES, max_size=40)),
    st.lists(st.tuples(st.sampled_from(["", "a"]), st.integers(0, 10**13)), max_size=20),
)
def test_whatever_has_finished_makes_a_policy_that_can_be_executed(
    finished: dict[str, list[int]], live: list[tuple[str, int]]
) -> None:
    known = Sizes()
    known.go_on(live)
    for name, services in finished.items():
        for service in services:
            known.end(name, service)
    releveled = known.relevel(GITTINS)
    assert from_dict(to_dict(releveled)) == releveled
    assert policy_from(policy_to(releveled)) == releveled
    assert {name for name, _ in releveled.classes} == set(finished)


def test_only_the_newest_programs_and_classes_count() -> None:
    known = Sizes()
    for service in (SECOND, 100 * SECOND):
        for _ in range(MAX_SAMPLES):
            known.end("", service)
    assert set(known.finished[""]) == {100 * SECOND}
    for number in range(MAX_KNOWN_CLASSES):
        known.end(f"class {number}", SECOND)
    assert len(known.finished) == MAX_KNOWN_CLASSES
    assert "" not in known.finished


def test_ranks_grow_with_the_logarithm_of_the_cost() -> None:
    ranks = [rank_of(cost_us) for cost_us in (0, BASE_US - 1, BASE_US, 1.31 * BASE_US, 1.7 * BASE_US, 10**18)]
    assert ranks == [0, 0, 1, 2, 3, 111]


async def test_engines_get_the_levels_of_a_class_once_enough_of_it_have_finished() -> None:
    async with ServedPlane(policy="gittins") as served:
        engine = PlayedEngine(served.engine_service)
        first = (await engine.hello()).policy
        assert (first.policy.name, len(first.policy.classes)) == ("gittins", 0)
        for number in range(MIN_SAMPLES):
            program = f"p{number}"
            await served.programs.OpenProgram(
                program_service_pb2.OpenProgramRequest(program_id=program, name="crawler")
            )
            call = await served.calls.AdmitCall(call_service_pb2.AdmitCallRequest(program_id=program))
            await engine.report(
                call, seq=number + 1, service_us=16 * SECOND + number, outcome=types_pb2.OUTCOME_COMPLETED
            )
            await served.programs.CloseProgram(program_service_pb2.CloseProgramRequest(program_id=program))
        await served.plane.tick()
        sent = (await engine.hear("policy")).directive.policy
        assert sent.version == first.version
        assert [each.application for each in sent.policy.classes] == ["crawler"]
        table = policy_from(sent.policy).levels_of("crawler")
        assert level_of(table, 15 * SECOND) != level_of(table, 0)
        assert (table[level_of(table, 15 * SECOND)].rank or 0) < (table[0].rank or 0)
        # The applied policy is in force, and an engine that attaches later gets the computed levels first.
        status = await served.admin.GetPolicy(admin_service_pb2.GetPolicyRequest())
        assert status.policy == first
        assert (await PlayedEngine(served.engine_service).hello("e2")).policy == sent
        admitted = await served.calls.AdmitCall(
            call_service_pb2.AdmitCallRequest(program_id="new", name="crawler", implicit=True)
        )
        keys = IssuerKeys([key.public_key() for key in served.settings.ticket_keys()])
        verified = verify(admitted.ticket, keys, engine_id=admitted.engine_id, now_unix_s=0)
        assert verified.ticket.class_name == "crawler"


async def test_levels_of_a_policy_that_is_no_longer_in_force_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop, relevel = asyncio.get_running_loop(), Sizes.relevel

    def late(sizes: Sizes, policy: Policy) -> Policy:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        return relevel(sizes, policy)

    monkeypatch.setattr(Sizes, "relevel", late)
    async with ServedPlane(policy="gittins") as served:
        ticking = asyncio.create_task(served.plane.tick())
        await begun.wait()
        await served.admin.ApplyPolicy(admin_service_pb2.ApplyPolicyRequest(policy=types_pb2.Policy(name="plas")))
        go_on.set()
        await ticking
        welcome = await PlayedEngine(served.engine_service).hello()
    assert (welcome.policy.version, policy_from(welcome.policy.policy)) == (2, PLAS)
