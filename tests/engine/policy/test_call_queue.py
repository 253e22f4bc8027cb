"""The call queue against what Algorithm 1 promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentserving.contract.policy import ATLAS, FCFS, PLAS, PRESETS, Accounting, Level, Order, Policy
from agentserving_engine.policy import CallQueue, Decision, PrefillCost, Room, is_overwritten
from agentserving_engine.policy.slot_pace import Allowance
from engine.policy.builders import call, program
from engine.policy.slot_engine import SECOND, Plan, total_wait_s
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

THREE = (Level(2 * SECOND, 2 * SECOND), Level(6 * SECOND, 4 * SECOND), Level())


def decide(queue: CallQueue, now: int, slots: int, resume_us: int = 0):
    room = Room(
        slots=slots, free_blocks=1 << 30, need_blocks=lambda k: 1, returns_blocks=lambda k: 1,
        resume_us=lambda k: resume_us,
    )  # fmt: skip
    return queue.decide(now, room)


def test_a_call_arrives_at_the_level_where_its_program_stands() -> None:
    queue = CallQueue(Policy(accounting=Accounting.SUM, levels=THREE))
    for key, account in (("a", 0), ("b", 2 * SECOND), ("c", 6 * SECOND)):
        queue.arrive(call(key, key, account), 0)
    assert [queue.rank(key)[0] for key in "abc"] == [0, 1, 2]


def test_a_call_is_demoted_exactly_when_its_quantum_is_spent() -> None:
    queue = CallQueue(Policy(accounting=Accounting.SUM, levels=THREE))
    queue.arrive(call("a", "p"), 0)
    queue.start("a", 0)
    queue.charge(["a"], 2 * SECOND - 1)
    assert decide(queue, 1, 1).demoted == ()
    queue.charge(["a"], 1)
    assert decide(queue, 2, 1).demoted == ("a",)
    assert queue.rank("a")[0] == 1


def test_a_call_of_a_better_level_displaces_a_running_one_of_a_worse_level() -> None:
    queue = CallQueue(Policy(levels=THREE, accounting=Accounting.SUM, max_preemptions=1))
    for key in "ab":
        queue.arrive(call(key, key, 7 * SECOND), 0)
        queue.start(key, 0)
    for key in "xy":
        queue.arrive(call(key, key), 1)
    decision = decide(queue, 1, 2)
    assert decision.preempt == ("b",)
    assert decision.admit == ("x",)


def test_calls_of_the_same_level_never_displace_each_other() -> None:
    queue = CallQueue(Policy(levels=THREE, accounting=Accounting.SUM, max_preemptions=9))
    queue.arrive(call("a", "a"), 0)
    queue.start("a", 0)
    queue.arrive(call("b", "b"), 1)
    assert decide(queue, 1, 1).preempt == ()


def test_a_starving_call_is_promoted_when_wait_over_service_reaches_beta() -> None:
    queue = CallQueue(Policy(levels=THREE, accounting=Accounting.SUM, beta_milli=3000))
    queue.arrive(call("a", "p", 7 * SECOND), 0)
    assert decide(queue, 21 * SECOND - 1, 0).promoted == ()
    assert decide(queue, 21 * SECOND, 0).promoted == ("a",)
    assert queue.rank("a")[0] == 0


def test_a_paused_program_is_not_offered_and_returns_to_its_position() -> None:
    queue = CallQueue(FCFS)
    for key in "ab":
        queue.arrive(call(key, key), 0)
    assert queue.pause(program("a"), True, 1) == []
    assert list(queue.iter_waiting()) == ["b"]
    queue.pause(program("a"), False, 2)
    assert list(queue.iter_waiting()) == ["a", "b"]


def test_program_order_runs_the_older_program_first() -> None:
    queue = CallQueue(Policy(order=Order.PROGRAM_ARRIVAL))
    queue.arrive(call("late", "new", arrival_us=9), 10)
    queue.arrive(call("early", "old", arrival_us=1), 11)
    assert list(queue.iter_waiting()) == ["early", "late"]


FIG2 = {"A": [[3], [3], [2]], "B": [[3], [3], [2]], "C": [[2], [1]], "D": [[2], [1]]}


@pytest.mark.parametrize(
    ("policy", "wait_s"),
    [
        (FCFS, 18),
        (Policy(levels=(Level(3 * SECOND, 3 * SECOND), Level()), max_preemptions=4), 18),
        (Policy(levels=(Level(3 * SECOND, 3 * SECOND), Level()), accounting=Accounting.SUM, max_preemptions=4), 12),
    ],
    ids=["fcfs", "mlfq", "plas"],
)
def test_figure_2_of_the_paper(policy: Policy, wait_s: int) -> None:
    """Two long and two short programs, two slots: total wait 18, 18 and 12 (an instance with the figure's sums)."""
    plans = [Plan(name, [list(stage) for stage in stages]) for name, stages in FIG2.items()]
    assert total_wait_s(policy, plans, slots=2) == wait_s


@pytest.mark.parametrize(("accounting", "wait_s"), [(Accounting.NONE, 5), (Accounting.CRITICAL_PATH, 3)])
def test_figure_19_of_the_paper(accounting: Accounting, wait_s: int) -> None:
    """One slot; as B's second long call comes, A forks two short ones: total wait 5 under MLFQ, 3 under ATLAS."""
    policy = Policy(levels=(Level(2 * SECOND, 2 * SECOND), Level()), accounting=accounting, max_preemptions=1)
    assert total_wait_s(policy, [Plan("B", [[2], [2]]), Plan("A", [[1, 1]], at_s=2)], slots=1) == wait_s


# Levels whose order is not their number, and a class with others.
RANKED = replace(
    PLAS,
    name="ranked",
    levels=(Level(SECOND, SECOND, 5), Level(9 * SECOND, 8 * SECOND, 2), Level(rank=7)),
    classes=(("other", (Level(4 * SECOND, 4 * SECOND, 3), Level(rank=1))),),
)


def test_the_level_of_the_lowest_rank_runs_first_whichever_class_it_is_of() -> None:
    queue = CallQueue(RANKED)
    for key, account, class_name in (
        ("young", 0, ""), ("middle", 2 * SECOND, ""), ("old", 99 * SECOND, ""),
        ("other young", 0, "other"), ("other old", 5 * SECOND, "other"),
    ):  # fmt: skip
        queue.arrive(call(key, key, account, class_name=class_name), 0)
    assert list(queue.iter_waiting()) == ["other old", "middle", "other young", "young", "old"]


def test_a_call_that_reaches_a_better_level_is_not_preempted_for_those_it_has_overtaken() -> None:
    queue = CallQueue(RANKED)
    queue.arrive(call("a", "a"), 0)
    queue.start("a", 0)
    queue.arrive(call("b", "b", 2 * SECOND), 1)
    assert decide(queue, 2, 1).preempt == ("a",)
    queue.charge(["a"], SECOND)
    assert decide(queue, SECOND, 1) == Decision(demoted=("a",))


def test_who_has_waited_too_long_enters_the_best_level() -> None:
    queue = CallQueue(replace(RANKED, beta_milli=1000))
    queue.arrive(call("a", "a", 10 * SECOND), 0)
    queue.arrive(call("b", "b", 2 * SECOND), 0)
    # `b` is at the best level of its class, but another class has a better one.
    assert decide(queue, 10 * SECOND, 0).promoted == ("b", "a")
    stats = queue.stats("a", 10 * SECOND)
    assert stats is not None
    assert RANKED.levels[stats.level].rank == 2


class QueueMachine(RuleBasedStateMachine):
    """Any sequence of events keeps the queue's promises."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = CallQueue(ATLAS)
        self.now = 0
        self.arrived: dict[str, int] = {}
        self.service: dict[str, int] = {}
        self.count = 0

    @rule(
        account=st.integers(0, 100 * SECOND),
        number=st.integers(0, 5),
        managed=st.booleans(),
        class_name=st.sampled_from(["", "other"]),
    )
    def arrive(self, account: int, number: int, managed: bool, class_name: str) -> None:
        key = f"c{self.count}"
        self.count += 1
        self.queue.arrive(call(key, f"p{number}", account, managed=managed, class_name=class_name), self.now)
        self.arrived[key], self.service[key] = self.now, 0

    @rule(slots=st.integers(1, 4), dt=st.integers(1, 5 * SECOND))
    def step(self, slots: int, dt: int) -> None:
        settled = self.queue.settled
        decision = decide(self.queue, self.now, slots)
        assert not settled or decision == Decision()
        assert len(decision.preempt) <= self.queue.policy.max_preemptions
        for key in decision.preempt:
            assert any(self.queue.rank(a)[0] < self.queue.rank(key)[0] for a in decision.admit)
            self.queue.preempt(key, self.now)
        for key in decision.admit:
            self.queue.start(key, self.now)
        running = self.queue.running_keys
        self.now += dt
        self.queue.charge(running, dt)
        for key in running:
            self.service[key] += dt

    @precondition(lambda self: self.arrived)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.arrived)))
        stats = self.queue.finish(key, self.now)
        assert stats is not None
        assert stats.service_us == self.service[key]
        assert stats.service_us + stats.wait_us == self.now - self.arrived[key]
        del self.arrived[key], self.service[key]
        assert self.queue.finish(key, self.now) is None

    @rule(policy=st.sampled_from([*PRESETS.values(), RANKED]))
    def switch(self, policy: Policy) -> None:
        self.queue.set_policy(policy)

    @rule(number=st.integers(0, 5), paused=st.booleans())
    def pause(self, number: int, paused: bool) -> None:
        for key in self.queue.pause(program(f"p{number}"), paused, self.now):
            self.queue.preempt(key, self.now)

    @invariant()
    def every_call_is_waiting_or_running_and_the_order_is_total(self) -> None:
        running = set(self.queue.running_keys)
        waiting = [key for key in self.arrived if key not in running]
        assert self.queue.waiting_count == len(waiting)
        offered = list(self.queue.iter_waiting())
        assert offered == sorted((key for key in waiting if not self.queue.is_paused(key)), key=self.queue.rank)
        assert len({self.queue.rank(key) for key in self.arrived}) == len(self.arrived)
        assert self.queue.paused_count == len(waiting) - len(offered)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(waits=st.lists(st.integers(1, 10 * SECOND), min_size=1, max_size=20), beta=st.integers(1000, 20_000))
def test_no_call_waits_longer_than_beta_times_service_without_being_promoted(waits: list[int], beta: int) -> None:
    queue = CallQueue(Policy(levels=THREE, accounting=Accounting.SUM, beta_milli=beta))
    queue.arrive(call("a", "p", 7 * SECOND), 0)
    now = 0
    promoted = False
    for wait in waits:
        now += wait
        promoted |= bool(decide(queue, now, 0).promoted)
        assert promoted == (now * 1000 >= beta * 7 * SECOND)


def test_a_policy_that_counts_accounts_learns_them_of_the_calls_that_are_here() -> None:
    """Under FCFS no account counts: a call that arrived then has none in its facts."""
    queue = CallQueue(FCFS)
    queue.arrive(call("old", "rich"), 0)
    queue.set_policy(PLAS, lambda key: call(key, "rich", 2 * 10**9))
    queue.arrive(call("new", "poor"), 1)
    assert queue.best_waiting() == "new"
    # Nor does it count as starved immediately: its program has received much.
    queue.decide(10**7, Room(slots=0, free_blocks=0, need_blocks=lambda key: 1, returns_blocks=lambda key: 1))
    stats = queue.stats("old", 10**7)
    assert stats is not None
    assert (stats.level, stats.promotions) == (len(PLAS.levels) - 1, 0)


def test_a_call_that_could_not_start_preempts_and_blocks_no_other() -> None:
    queue = CallQueue(PLAS)
    queue.arrive(call("hog", "hog", 10**9), 0)
    queue.start("hog", 0)
    queue.arrive(call("blocked", "a"), 1)
    room = Room(
        slots=1, free_blocks=9, need_blocks=lambda key: 1, returns_blocks=lambda key: 1,
        admissible=lambda key: key != "blocked",
    )  # fmt: skip
    assert queue.decide(2, room).preempt == ()
    queue.arrive(call("able", "b"), 3)
    decision = queue.decide(4, room)
    assert (decision.preempt, decision.admit) == (("hog",), ("able",))


def crowded(*, end_interval_us: int) -> CallQueue:
    """One slot, taken by a call of the worst level, a newcomer waiting; slots came free at this interval before."""
    queue = CallQueue(Policy(levels=THREE, accounting=Accounting.SUM, max_preemptions=4))
    now = 0
    for number in range(40):
        queue.arrive(call(f"before{number}", "before"), now)
        queue.start(f"before{number}", now)
        now += end_interval_us
        queue.finish(f"before{number}", now)
    queue.arrive(call("hog", "old", 100 * SECOND), now)
    queue.start("hog", now)
    queue.arrive(call("new", "young"), now)
    return queue


@pytest.mark.parametrize(("resume_us", "preempted"), [(0, True), (49_000, True), (51_000, False)])
def test_a_preemption_is_made_when_it_saves_twice_what_it_costs(resume_us: int, preempted: bool) -> None:
    queue = crowded(end_interval_us=SECOND // 10)
    decision = decide(queue, 4 * SECOND, 1, resume_us)
    assert decision.preempt == (("hog",) if preempted else ())


def test_a_preemption_that_did_not_pay_is_made_once_no_slot_has_come_free_for_long() -> None:
    queue = crowded(end_interval_us=SECOND // 10)
    assert not decide(queue, 4 * SECOND + 100_000, 1, SECOND).preempt
    assert not decide(queue, 6 * SECOND - 1, 1, SECOND).preempt
    assert decide(queue, 6 * SECOND, 1, SECOND).preempt == ("hog",)


@given(
    base=st.integers(1_000, 50_000),
    per_token=st.integers(1, 500),
    prefills=st.lists(st.integers(17, 5000), min_size=1),
)
def test_the_cost_of_prefill_is_read_off_the_steps(base: int, per_token: int, prefills: list[int]) -> None:
    cost = PrefillCost()
    for tokens in prefills:
        cost.observe(base, 8, 8)
        cost.observe(base + per_token * tokens, 8, 8 + tokens)
    assert cost.us_per_token == pytest.approx(per_token)


@pytest.mark.parametrize("extra_us", [0, 5_000, 20_000])
def test_the_cost_of_prefill_is_that_of_tokens_and_not_of_steps(extra_us: int) -> None:
    """Whatever steps with short prompts cost beyond their tokens: most tokens are in the long ones."""
    cost = PrefillCost()
    for _ in range(200):
        for prompt, extra in ((20, extra_us), (20, extra_us), (2000, 0)):
            cost.observe(10_000, 8, 8)
            cost.observe(10_000 + 100 * prompt + extra, 8, 8 + prompt)
    assert cost.us_per_token == pytest.approx(100 + 2 * extra_us / 2040, rel=0.02)


def test_prefill_has_a_cost_where_no_step_ever_only_decodes() -> None:
    cost = PrefillCost()
    cost.observe(200_000, 8, 2008)
    assert cost.us_per_token == pytest.approx(100)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), min_size=1))
def test_an_allowance_is_a_burst_a_share_of_the_time_and_one_spending_at_most(events: list[tuple[int, int]]) -> None:
    allowance, now, spent, largest = Allowance(0.1, 5_000), 0, 0.0, 0
    for after, cost in events:
        now += after
        if allowance.left_us(now) > 0:
            allowance.spend(cost)
            spent, largest = spent + cost, max(largest, cost)
    assert spent <= 5_000 + 0.1 * now + largest


@pytest.mark.parametrize(
    ("findable", "free", "waiting", "overwritten"),
    [(True, 100, 100, False), (True, 99, 100, True), (False, 100, 0, True)],
)
def test_the_kv_of_a_preempted_call_is_overwritten_when_waiting_calls_need_all_free_blocks(
    findable: bool, free: int, waiting: int, overwritten: bool
) -> None:
    assert is_overwritten(findable, free, waiting) is overwritten


def test_victims_are_priced_only_among_calls_of_worse_levels() -> None:
    queue = CallQueue(PLAS)
    priced: list[str] = []
    queue.arrive(call("best"), 0)
    queue.arrive(call("worst", attained_us=600 * SECOND), 0)
    for key in ("best", "worst"):
        queue.start(key, 0)
    queue.arrive(call("new"), 0)

    def resume_us(key: str) -> float:
        priced.append(key)
        return 0

    room = Room(slots=2, free_blocks=99, need_blocks=lambda key: 1, returns_blocks=lambda key: 1, resume_us=resume_us)
    decision = queue.decide(SECOND, room)
    assert decision.preempt == ("worst",)
    assert set(priced) == {"worst"}
