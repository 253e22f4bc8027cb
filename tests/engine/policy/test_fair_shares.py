"""Tenants share an engine by weight, whatever each of them calls its programs and however it divides its work."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from agentserving.contract.ids import Tenant
from agentserving.contract.policy import ATLAS, FCFS, MLFQ, PLAS, PRESETS, PROGRAM_PLAS, Policy
from agentserving_engine.policy import CallQueue, Decision, Room
from agentserving_engine.policy.call_queue import FairOrder
from agentserving_engine.policy.tenant_accounts import MAX_ABSENT, QUANTUM_US, UNTICKETED, TenantAccounts
from engine.policy.builders import call, program
from engine.policy.shared_engine import STEP_US, Load, SharedEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

ACME, GLOBEX = Tenant("acme"), Tenant("globex")
SECOND = 1_000_000
# Issue 15: what a trick may buy.
GAIN = 1.05
policies = st.sampled_from([replace(policy, beta_milli=beta) for policy in PRESETS.values() for beta in (0, 2000)])


def lasting(least: int, most: int) -> Callable[[random.Random], int]:
    return lambda dice: dice.randint(least, most)


def honest(tenant: str = "acme", calls: int = 16, **more: Any) -> Load:
    return Load(tenant, **{"calls": calls, "steps": lasting(10, 30), **more})


def share(engine: SharedEngine, tenant: str, steps: int = 800) -> float:
    served = engine.run(steps)
    return served[tenant] / served.total()


TRICKS: dict[str, dict[str, Any]] = {
    "minting program ids": {"mints": True},
    "splitting calls": {"steps": lasting(1, 3)},
    "long calls": {"steps": lasting(100, 200)},
    "fan-out": {"calls": 200},
    "n > 1, lists of prompts": {"calls": 64, "sequences": 8},
    "ending and retrying running calls": {"ends": 0.2},
    "restarts under new ids": {"ends": 0.2, "mints": True},
    "other classes": {"classes": ("", "a", "b")},
    "everything": {"calls": 200, "sequences": 4, "ends": 0.1, "mints": True, "steps": lasting(1, 10)},
}


@pytest.mark.parametrize("trick", TRICKS)
@settings(max_examples=6, deadline=None)
@given(policy=policies, slots=st.integers(2, 10), seed=st.integers(0, 1000))
def test_a_trick_buys_nothing_from_another_tenant(trick: str, policy: Policy, slots: int, seed: int) -> None:
    engine = SharedEngine(policy, slots, [honest(), honest("globex", **TRICKS[trick])], seed=seed)
    # So long that one call more is a small part.
    assert share(engine, "globex", 3200 if trick == "long calls" else 800) <= GAIN / 2
    assert engine.idle_slots == 0, "work-conserving"


@settings(max_examples=15, deadline=None)
@given(
    policy=policies,
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
    trick=st.sampled_from(sorted(TRICKS)),
)
def test_shares_are_as_the_weights(policy: Policy, weights: list[int], seed: int, trick: str) -> None:
    names = [f"t{number}" for number in range(len(weights))]
    loads = [honest(name, **(TRICKS[trick] if name == "t0" else {})) for name in names]
    engine = SharedEngine(policy, 8, loads, dict(zip(names, weights, strict=True)), seed)
    served = engine.run(1500)
    for name, weight in zip(names, weights, strict=True):
        assert served[name] / served.total() == pytest.approx(weight / sum(weights), rel=0.05)


@settings(max_examples=10, deadline=None)
@given(policy=policies, idle=st.integers(1, 400), seed=st.integers(0, 1000))
def test_idling_saves_nothing_and_loses_nothing(policy: Policy, idle: int, seed: int) -> None:
    engine = SharedEngine(policy, 8, [honest(idle=(100, 100 + idle)), honest("globex")], seed=seed)
    engine.run(100)
    assert share(engine, "globex", idle) > 0.99, "work-conserving"
    assert share(engine, "acme", 500) == pytest.approx(0.5, rel=0.05)


def test_a_tenant_that_used_little_while_there_was_room_has_no_claim_later() -> None:
    engine = SharedEngine(FCFS, 16, [honest(calls=1), honest("globex", calls=12)])
    engine.run(1000)
    for load in engine.loads:
        load.calls = 40
    assert share(engine, "acme", 500) == pytest.approx(0.5, rel=0.05)


def test_what_a_tenant_is_ahead_outlasts_its_absence() -> None:
    """Two slots. `globex` holds both while `acme` waits, ends its calls and comes back: it is still ahead."""
    accounts = TenantAccounts()
    accounts.waits(ACME, [])
    for _ in range(2):
        accounts.started(GLOBEX)
    accounts.charge(SECOND)
    for _ in range(2):
        accounts.stopped(GLOBEX)
    accounts.waits(GLOBEX, [ACME])
    assert (accounts.virtual_us(ACME), accounts.virtual_us(GLOBEX)) == (0, 2 * SECOND)


@settings(max_examples=10, deadline=None)
@given(policy=policies, slots=st.integers(1, 8), others=st.integers(1, 3), seed=st.integers(0, 1000))
def test_nobody_starves_even_where_no_call_ever_ends(policy: Policy, slots: int, others: int, seed: int) -> None:
    """The bound: a quantum for each tenant, even with one slot and calls that never leave it."""
    endless = [honest(f"t{number}", steps=lasting(10**6, 10**6), mints=True) for number in range(others)]
    engine = SharedEngine(policy, slots, [*endless, honest(idle=(0, 400))], seed=seed)
    engine.run(400)
    engine.run((others + 1) * (QUANTUM_US // STEP_US + 2))
    assert engine.served["acme"] > 0
    if slots > others:
        assert share(engine, "acme", 2000) >= 0.8 / (others + 1)


# -- one tenant ----------------------------------------------------------------------------------------------------


def trace(policy: Policy, seed: int, *, fair: bool) -> list[object]:
    """What runs in each step with one tenant, with the order of one tenant or with that of several."""
    engine = SharedEngine(policy, 6, [honest(calls=30, classes=("", "a")), honest("acme", calls=9, mints=True)])
    engine.random.seed(seed)
    if fair:
        engine.queue.arrive(call("kept", "kept"), 0)
        engine.queue.pause(program("kept", "default"), True, 0)
        engine.queue.arrive(msgspec.structs.replace(call("other", "other"), program=program("other", "globex")), 0)
        engine.queue.finish("other", 0)
        engine.queue.arrive(msgspec.structs.replace(call("acme", "acme"), program=program("acme", "acme")), 0)
        engine.queue.finish("acme", 0)
    queue = engine.queue
    seen: list[object] = [(queue.running_keys, queue.first_waiting(3), engine.preemptions) for _ in engine.steps(300)]
    assert engine.queue.is_shared is fair
    return seen


@settings(max_examples=10, deadline=None)
@given(policy=policies, seed=st.integers(0, 1000))
def test_one_tenant_is_scheduled_as_if_there_were_no_tenants(policy: Policy, seed: int) -> None:
    assert trace(policy, seed, fair=False) == trace(policy, seed, fair=True)


def test_one_tenant_runs_none_of_the_code_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("one tenant has no need of this")

    for name in ("waits", "started", "stopped", "charge", "standing"):
        monkeypatch.setattr(TenantAccounts, name, never)
    monkeypatch.setattr(FairOrder, "__init__", never)
    engine = SharedEngine(PLAS, 6, [honest(calls=30), honest("acme", mints=True), honest("", calls=4)])
    engine.run(200)
    assert not engine.queue.is_shared


def test_an_engine_that_was_empty_has_one_tenant_again() -> None:
    queue = CallQueue(FCFS)
    for tenant in ("acme", "globex"):
        queue.arrive(msgspec.structs.replace(call(tenant), program=program(tenant, tenant)), 0)
    assert queue.is_shared
    changes = queue.order_changes
    queue.finish("acme", 1)
    assert queue.is_shared, "a debt may be left"
    queue.finish("globex", 1)
    assert not queue.is_shared
    assert queue.order_changes > changes


def test_calls_without_a_tenant_run_last_and_do_not_starve() -> None:
    engine = SharedEngine(FCFS, 4, [honest(), honest("globex"), honest(UNTICKETED, calls=50)])
    assert 0 < share(engine, UNTICKETED, 2000) < 0.02


# -- accounts and events -------------------------------------------------------------------------------------------


def two(policy: Policy = FCFS) -> CallQueue:
    """`globex` has two running calls and is ahead; `acme` and `globex` wait with two each."""
    queue = CallQueue(policy)
    for key in ("g1", "g2", "g3", "g4", "a1", "a2"):
        queue.arrive(msgspec.structs.replace(call(key), program=program(key, {"a": "acme", "g": "globex"}[key[0]])), 0)
    for key in ("g1", "g2"):
        queue.start(key, 0)
    queue.charge_tenants(SECOND)
    return queue


def decide(queue: CallQueue, slots: int, now_us: int = 1) -> Decision:
    return queue.decide(
        now_us, Room(slots=slots, free_blocks=99, need_blocks=lambda key: 1, returns_blocks=lambda key: 1)
    )


@pytest.mark.parametrize("policy", [FCFS, MLFQ, PLAS, ATLAS])
def test_slots_that_come_free_together_are_shared(policy: Policy) -> None:
    queue = two(policy)
    for key in ("g1", "g2"):
        queue.finish(key, SECOND)
    assert queue.first_waiting(4) == ["a1", "a2", "g3", "g4"]
    for _ in range(4):
        queue.tenants.ended(10 * SECOND)
    assert queue.first_waiting(4) == ["a1", "g3", "a2", "g4"]
    assert queue.first_waiting(1) == [queue.best_waiting()] == ["a1"]
    assert list(queue.iter_waiting())[:3] == queue.first_waiting(3)


def test_the_order_survives_another_policy_and_a_rebuilt_queue() -> None:
    queue = two()
    before = queue.first_waiting(4)
    standings = [queue.tenants.virtual_us(tenant) for tenant in (ACME, GLOBEX)]
    queue.set_policy(PROGRAM_PLAS)
    assert queue.first_waiting(4) == before
    assert [queue.tenants.virtual_us(tenant) for tenant in (ACME, GLOBEX)] == standings


def test_another_tenants_call_is_preempted_only_after_a_quantum() -> None:
    queue = two()
    for second in range(QUANTUM_US // SECOND):
        assert decide(queue, 2, second * SECOND).preempt == ()
        queue.charge_tenants(SECOND)
        # Sequences of one call (n > 1) are charged with each other's service, which does not shorten it.
        queue.charge(queue.running_keys, 4 * SECOND)
    decision = decide(queue, 2, QUANTUM_US)
    assert (len(decision.preempt), decision.admit) == (1, ("a1",))
    (victim,) = decision.preempt
    queue.preempt(victim, QUANTUM_US)
    queue.start("a1", QUANTUM_US)
    queue.charge(["a1"], SECOND)
    queue.arrive(msgspec.structs.replace(call("b1"), program=program("b1", "brand-new")), QUANTUM_US)
    assert "a1" not in decide(queue, 2, 2 * QUANTUM_US).preempt, "it is not ahead of anyone"


def test_what_a_sequence_receives_on_average_is_its_time_in_slots() -> None:
    """Not what its whole call has received (n > 1), and not the time in which it was preempted."""
    accounts = TenantAccounts()
    queue = CallQueue(FCFS, accounts)
    for key, tenant in (("a", "acme"), ("g", "globex")):
        queue.arrive(msgspec.structs.replace(call(key), program=program(key, tenant)), 0)
    before_us = accounts.standing(ACME, 1)
    queue.start("a", 0)
    queue.preempt("a", SECOND // 2)
    queue.start("a", 10 * SECOND)
    queue.charge(["a"], 40 * SECOND)
    queue.finish("a", 10 * SECOND + SECOND // 2)
    assert before_us == SECOND
    assert accounts.standing(ACME, 1) == SECOND, "one second again, as the first guess"


def test_the_tenant_that_is_ahead_is_the_last_of_those_that_run() -> None:
    queue = two(PLAS)
    queue.start("a1", 1)
    assert sorted(queue.running_keys, key=queue.rank)[0] == "a1"
    assert queue.tenants_moved()
    assert not queue.tenants_moved()


def test_tenants_without_calls_are_forgotten_those_furthest_behind_first() -> None:
    accounts = TenantAccounts()
    for number in range(2 * MAX_ABSENT + 2):
        tenant = Tenant(f"t{number}")
        accounts.started(tenant)
        accounts.charge(number)
        accounts.stopped(tenant)
    accounts.forget_absent([Tenant("t0")])
    assert accounts.virtual_us(Tenant(f"t{MAX_ABSENT * 2}")) == 2 * MAX_ABSENT
    assert accounts.virtual_us(Tenant("t1")) == 0
    assert len(accounts._accounts) <= MAX_ABSENT + 3


class SharedQueueMachine(RuleBasedStateMachine):
    """Any sequence of events of several tenants keeps the queue's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = CallQueue(ATLAS)
        self.now = 0
        self.here: dict[str, str] = {}
        self.count = 0

    @rule(tenant=st.sampled_from(["a", "b", "c", ""]), number=st.integers(0, 3), account=st.integers(0, 100 * SECOND))
    def arrive(self, tenant: str, number: int, account: int) -> None:
        key = f"c{self.count}"
        self.count += 1
        facts = msgspec.structs.replace(call(key, attained_us=account), program=program(f"p{number}", tenant))
        self.queue.arrive(facts, self.now)
        self.here[key] = tenant

    @rule(slots=st.integers(1, 4), dt=st.integers(1, 10 * SECOND))
    def step(self, slots: int, dt: int) -> None:
        decision = decide(self.queue, slots)
        for key in decision.preempt:
            self.queue.preempt(key, self.now)
        for key in decision.admit:
            self.queue.start(key, self.now)
        self.now += dt
        self.queue.charge_tenants(dt)
        self.queue.charge(self.queue.running_keys, dt)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.here)))
        assert self.queue.finish(key, self.now) is not None
        del self.here[key]

    @rule(policy=st.sampled_from(list(PRESETS.values())))
    def switch(self, policy: Policy) -> None:
        self.queue.set_policy(policy)

    @rule(tenant=st.sampled_from(["a", "b"]), number=st.integers(0, 3), paused=st.booleans())
    def pause(self, tenant: str, number: int, paused: bool) -> None:
        for key in self.queue.pause(program(f"p{number}", tenant), paused, self.now):
            self.queue.preempt(key, self.now)

    @invariant()
    def the_order_offers_every_waiting_call_once_and_each_tenants_by_rank(self) -> None:
        running = set(self.queue.running_keys)
        offered = list(self.queue.iter_waiting())
        assert sorted(offered) == sorted(k for k in self.here if k not in running and not self.queue.is_paused(k))
        assert offered == self.queue.first_waiting(len(offered) + 1)
        assert offered[:1] == ([] if (best := self.queue.best_waiting()) is None else [best])
        for tenant in set(self.here.values()):
            of = [key for key in offered if self.here[key] == tenant]
            assert of == sorted(of, key=self.queue.rank) or not self.queue.is_shared
        assert self.queue.paused_count == self.queue.waiting_count - len(offered)


TestSharedQueueMachine = SharedQueueMachine.TestCase
TestSharedQueueMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
