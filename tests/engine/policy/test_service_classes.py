"""Classes of service: batch gives way to standard and interactive calls of its tenant, and is never starved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from agentserving.contract.policy import FCFS, MLFQ, PLAS, PRESETS, PROGRAM_PLAS, Policy
from agentserving.contract.service_class import SERVICE_CLASSES, ServiceClass
from agentserving_engine.policy import CallFacts, CallQueue, Decision, Room
from agentserving_engine.policy.class_aging import AGE_US
from engine.policy.builders import call, program
from engine.policy.shared_engine import Load, SharedEngine
from hypothesis import given, settings
from hypothesis import strategies as st

INTERACTIVE, STANDARD, BATCH = SERVICE_CLASSES
SECOND = 1_000_000
policies = st.sampled_from([replace(policy, beta_milli=beta) for policy in PRESETS.values() for beta in (0, 2000)])


def of(service_class: ServiceClass, key: str, **more: Any) -> CallFacts:
    return call(key, service_class=service_class, **more)


def decide(queue: CallQueue, slots: int, now_us: int = 1) -> Decision:
    room = Room(slots=slots, free_blocks=999, need_blocks=lambda key: 1, returns_blocks=lambda key: 1)
    return queue.decide(now_us, room)


@pytest.mark.parametrize("policy", PRESETS.values(), ids=PRESETS)
def test_a_better_class_goes_first_whatever_its_programs_have_attained(policy: Policy) -> None:
    queue = CallQueue(policy)
    queue.arrive(of(BATCH, "b"), 0)
    queue.arrive(of(STANDARD, "s", attained_us=100 * SECOND), 0)
    queue.arrive(of(INTERACTIVE, "i", attained_us=10_000 * SECOND), 0)
    queue.arrive(of(STANDARD, "none", managed=False), 0)
    assert queue.first_waiting(4) == ["i", "s", "b", "none"]


def test_inside_a_class_the_policy_decides() -> None:
    queue = CallQueue(PLAS)
    for key, attained_us in (("long", 100 * SECOND), ("short", 0), ("middle", SECOND)):
        queue.arrive(of(BATCH, key, attained_us=attained_us), 0)
    assert queue.first_waiting(3) == ["short", "middle", "long"]


def test_a_starving_call_is_promoted_inside_its_class() -> None:
    """A batch program that has attained nothing starves within a fifth of a second: it must not pass the others."""
    queue = CallQueue(PLAS)
    for kind in (BATCH, STANDARD):
        queue.arrive(of(kind, f"new {kind.label}"), 0)
        queue.arrive(of(kind, f"old {kind.label}", attained_us=2 * SECOND), 0)
    assert set(decide(queue, 0, 50 * SECOND).promoted) == {"old batch", "old standard"}
    assert queue.first_waiting(4) == ["new standard", "old standard", "new batch", "old batch"]


def test_batch_is_preempted_as_the_policy_preempts_worse_levels() -> None:
    for policy, expected in ((PLAS, ("b2",)), (FCFS, ())):
        queue = CallQueue(policy)
        for key in ("b1", "b2"):
            queue.arrive(of(BATCH, key), 0)
            queue.start(key, 0)
        queue.arrive(of(INTERACTIVE, "i", attained_us=10_000 * SECOND), 1)
        assert decide(queue, 2).preempt == expected, policy.name


def test_shares_of_tenants_stand_above_classes() -> None:
    """`globex` is ahead: its interactive call waits for the batch call of `acme`."""
    queue = CallQueue(PLAS)
    for key, tenant, kind in (("g1", "globex", BATCH), ("g2", "globex", INTERACTIVE), ("a", "acme", BATCH)):
        queue.arrive(msgspec.structs.replace(of(kind, key), program=program(key, tenant)), 0)
    queue.start("g1", 0)
    queue.charge_tenants(SECOND)
    assert queue.first_waiting(2) == ["a", "g2"]


# -- nothing changes without classes -------------------------------------------------------------------------------


def trace(policy: Policy, seed: int, kind: ServiceClass) -> list[object]:
    """What runs in each step when all calls are of one class."""
    loads = [
        Load("acme", calls=30, steps=lambda dice: dice.randint(5, 40), classes=("", "a")),
        Load("acme", calls=9, mints=True, steps=lambda dice: dice.randint(5, 40)),
    ]
    engine = SharedEngine(policy, 6, loads, service_class=kind)
    engine.random.seed(seed)
    queue = engine.queue
    return [(queue.running_keys, queue.first_waiting(3), engine.preemptions) for _ in engine.steps(400)]


@settings(max_examples=15, deadline=None)
@given(policy=policies, seed=st.integers(0, 1000), kind=st.sampled_from([INTERACTIVE, BATCH]))
def test_calls_of_one_class_are_scheduled_as_if_there_were_no_classes(
    policy: Policy, seed: int, kind: ServiceClass
) -> None:
    assert trace(policy, seed, kind) == trace(policy, seed, STANDARD)


@settings(max_examples=10, deadline=None)
@given(policy=policies, seed=st.integers(0, 1000))
def test_no_call_ages_while_no_better_class_is_there(policy: Policy, seed: int) -> None:
    engine = SharedEngine(policy, 3, [Load("acme", calls=20, steps=lambda dice: dice.randint(5, 400))])
    engine.random.seed(seed)
    for _ in engine.steps(2000):
        assert engine.queue._aging.due_us == float("inf")


# -- the bound -----------------------------------------------------------------------------------------------------

STEP_US = SECOND // 4


class Flooded:
    """An engine of slots on which more interactive calls wait than it can serve, and some calls of a worse class."""

    def __init__(self, policy: Policy, slots: int, seed: int) -> None:
        self.queue, self.slots, self.dice = CallQueue(policy), slots, random.Random(seed)
        self.now_us, self.count = 1, 0
        self.left: dict[str, int] = {}
        self.most_worse = 0

    def add(self, kind: ServiceClass, steps: int) -> str:
        self.count += 1
        key = f"{kind.label}-{self.count}"
        self.left[key] = steps
        self.queue.arrive(of(kind, key, arrival_us=self.now_us), self.now_us)
        return key

    def step(self, longest: int) -> Iterator[str]:
        """One step; gives the calls that end with it."""
        queue = self.queue
        while sum(key.startswith("interactive") for key in self.left) < 3 * self.slots:
            self.add(INTERACTIVE, self.dice.randint(1, longest))
        for key in decide(queue, self.slots, self.now_us).preempt:
            queue.preempt(key, self.now_us)
        while queue.running_count < self.slots and (key := queue.best_waiting()) is not None:
            queue.start(key, self.now_us)
        running = queue.running_keys
        self.most_worse = max(self.most_worse, sum(not key.startswith("interactive") for key in running))
        self.now_us += STEP_US
        queue.charge(running, STEP_US)
        for key in running:
            self.left[key] -= 1
            if not self.left[key]:
                del self.left[key]
                queue.finish(key, self.now_us)
                yield key


@settings(max_examples=25, deadline=None)
@given(
    policy=st.sampled_from([FCFS, MLFQ, PLAS, PROGRAM_PLAS]),
    kind=st.sampled_from([STANDARD, BATCH]),
    slots=st.integers(1, 4),
    calls=st.integers(1, 4),
    longest=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_a_worse_class_is_served_within_its_age_for_each_call_and_takes_one_slot(
    policy: Policy, kind: ServiceClass, slots: int, calls: int, longest: int, seed: int
) -> None:
    """Interactive calls fill the engine for ever. Each call of the class ends within the bound of docs/policies.md:
    for itself and for each before it AGE_US, the longest call that runs (without preemption a slot comes free then),
    and its own time."""
    engine = Flooded(policy, slots, seed)
    list(engine.step(longest))
    waiting = {engine.add(kind, engine.dice.randint(1, longest)) for _ in range(calls)}
    bound_us = calls * (AGE_US[kind] + 2 * (longest + 1) * STEP_US)
    while waiting:
        waiting -= set(engine.step(longest))
        assert engine.now_us <= bound_us + 2 * STEP_US, f"{sorted(waiting)} still wait"
    assert engine.most_worse == 1, "interactive calls lose one slot at most"


def test_a_flood_of_batch_does_not_pass_interactive_calls_however_long_it_waits() -> None:
    engine = Flooded(PLAS, 4, seed=1)
    for _ in range(200):
        engine.add(BATCH, 400)
    ended = [key for _ in range(4000) for key in engine.step(8)]
    assert engine.most_worse == 1
    assert sum(key.startswith("batch") for key in ended) >= 4000 * STEP_US // (AGE_US[BATCH] + 402 * STEP_US) - 1
    assert sum(key.startswith("interactive") for key in ended) > 2500


def test_a_class_of_which_calls_end_does_not_age() -> None:
    queue = CallQueue(FCFS)
    for key in ("b1", "b2"):
        queue.arrive(of(BATCH, key), 0)
    queue.arrive(of(INTERACTIVE, "i"), 0)
    queue.start("b1", 0)
    ended_us = AGE_US[BATCH] - SECOND
    queue.finish("b1", ended_us)
    assert decide(queue, 0, AGE_US[BATCH]).promoted == ()
    assert decide(queue, 0, ended_us + AGE_US[BATCH] - 1).promoted == ()
    assert decide(queue, 0, ended_us + AGE_US[BATCH]).promoted == ("b2",)


def test_an_aged_call_that_is_paused_lets_another_of_its_class_go() -> None:
    queue = CallQueue(FCFS)
    for key in ("b1", "b2"):
        queue.arrive(of(BATCH, key), 0)
    queue.arrive(of(INTERACTIVE, "i"), 0)
    assert decide(queue, 0, AGE_US[BATCH]).promoted == ("b1",)
    assert queue.best_waiting() == "b1"
    queue.pause(program("b1"), True, AGE_US[BATCH])
    assert decide(queue, 0, 2 * AGE_US[BATCH]).promoted == ("b2",)
    queue.pause(program("b1"), False, 2 * AGE_US[BATCH])
    assert queue.first_waiting(3) == ["b2", "i", "b1"]


def test_an_aged_call_that_is_aborted_makes_room_for_the_next() -> None:
    queue = CallQueue(FCFS)
    for key in ("b1", "b2"):
        queue.arrive(of(BATCH, key), 0)
    queue.arrive(of(INTERACTIVE, "i"), 0)
    decide(queue, 0, AGE_US[BATCH])
    queue.finish("b1", AGE_US[BATCH])
    assert decide(queue, 0, 2 * AGE_US[BATCH]).promoted == ("b2",)


def test_each_tenant_ages_by_itself() -> None:
    """Calls of `acme`'s batch end all the time; that of `globex` waits behind its own interactive calls."""
    queue = CallQueue(FCFS)
    for tenant in ("acme", "globex"):
        for kind in (BATCH, INTERACTIVE):
            key = f"{tenant} {kind.label}"
            queue.arrive(msgspec.structs.replace(of(kind, key), program=program(key, tenant)), 0)
    queue.start("acme batch", 0)
    queue.finish("acme batch", SECOND)
    assert decide(queue, 0, AGE_US[BATCH]).promoted == ("globex batch",)
