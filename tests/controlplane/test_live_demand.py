"""What live programs need is the sum over them, at any time and after any story."""

from __future__ import annotations

from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving_controlplane.table.live_demand import (
    HELD_US,
    HORIZON_US,
    KEEP_US,
    MIN_SAMPLES,
    Finished,
    LiveDemand,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

E1, E2 = EngineId("e1"), EngineId("e2")


def key(name: str) -> ProgramKey:
    return ProgramKey(Tenant("t"), ProgramId(name))


def began(demand: LiveDemand, program: str, call: str, tokens: int, now_us: int = 0, engine: EngineId = E1) -> None:
    demand.call_began(key(program), "class", CallId(call), engine, tokens, now_us)


def ended(demand: LiveDemand, program: str, call: str, tokens: int, now_us: int, service_us: int = 0) -> None:
    demand.call_ended(key(program), CallId(call), E1, tokens, service_us, 0, now_us)


def test_a_context_counts_during_a_call_and_for_a_while_after_it() -> None:
    demand = LiveDemand()
    began(demand, "p", "1", 1000)
    assert demand.signals(0).context_tokens == 1000
    ended(demand, "p", "1", 1200, 10)
    assert (demand.signals(9 + KEEP_US).context_tokens, demand.signals(9 + KEEP_US).calls) == (1200, 0)
    assert demand.signals(10 + KEEP_US).context_tokens == demand.signals(10 + KEEP_US).programs == 0


def test_a_long_call_counts_until_it_ends() -> None:
    demand = LiveDemand()
    began(demand, "p", "1", 1000)
    for minutes in range(1, 60):
        assert demand.signals(minutes * 60_000_000).context_tokens == 1000
    ended(demand, "p", "1", 1000, 3_600_000_000)
    assert demand.signals(3_600_000_001 + KEEP_US).context_tokens == 0


def test_calls_in_parallel_count_together_and_a_continued_context_once() -> None:
    demand = LiveDemand()
    began(demand, "p", "1", 1000)
    ended(demand, "p", "1", 1100, 1)
    began(demand, "p", "2", 1200, 2)
    assert demand.signals(3).context_tokens == 1200
    began(demand, "p", "3", 500, 3)
    assert demand.signals(3).context_tokens == 1700
    # They may be a fork of one context.
    assert demand.signals(3).least_context_tokens == 1100


def test_context_is_kept_by_the_engine_of_the_last_call() -> None:
    demand = LiveDemand()
    began(demand, "p", "1", 1000, engine=E1)
    began(demand, "q", "2", 300, engine=E1)
    began(demand, "p", "3", 100, 1, engine=E2)
    signals = demand.signals(2)
    assert (signals.kept_tokens, signals.kept_programs) == ({E1: 300, E2: 1100}, {E1: 1, E2: 1})


def test_a_call_counts_as_an_engine_at_most_whatever_its_sender_estimates() -> None:
    demand = LiveDemand()
    demand.most_tokens = 5000
    began(demand, "p", "1", 10**12)
    demand.call_held(1, None, 10**12, 0)
    assert demand.signals(1).context_tokens == 10_000


def test_a_closed_program_needs_nothing() -> None:
    demand = LiveDemand()
    began(demand, "p", "1", 1000)
    ended(demand, "p", "1", 1000, 1)
    demand.program_ended(key("p"), 2, is_whole=True)
    assert demand.signals(3) == LiveDemand().signals(3)


def test_held_calls_count_once_each_until_they_are_taken_or_given_up() -> None:
    demand = LiveDemand()
    for now_us in (0, 1_000_000):
        demand.call_held(1, key("p"), 100, now_us)
        demand.call_held(2, key("p"), 100, now_us)
        demand.call_held(3, None, 100, now_us)
    signals = demand.signals(1_000_001)
    assert (signals.held_calls, signals.held_programs, signals.context_tokens) == (3, 2, 300)
    demand.call_released(2)
    assert demand.signals(1_000_002).held_calls == 2
    assert demand.signals(1_000_000 + HELD_US).held_calls == 0


def test_service_left_is_that_of_finished_programs_which_had_more() -> None:
    finished = Finished()
    assert finished.left_us(5) == 5
    for _ in range(MIN_SAMPLES):
        finished.add(10, 10)
        finished.add(100, 100)
    assert finished.left_us(0) == 55
    assert finished.left_us(10) == 90
    # Longer than any before: as much again.
    assert finished.left_us(200) == 200


def test_a_class_that_mostly_waits_for_tools_asks_for_less_within_a_time() -> None:
    busy, slow = Finished(), Finished()
    for _ in range(100):
        busy.add(10 * HORIZON_US, 10 * HORIZON_US)
        slow.add(10 * HORIZON_US, 100 * HORIZON_US)
    assert busy.owed_us(0) == HORIZON_US
    assert slow.owed_us(0) == HORIZON_US // 10


class Sums(RuleBasedStateMachine):
    """Against a recount from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.demand, self.now, self.number = LiveDemand(), 0, 0
        # program -> [open calls (id, tokens)], kept, heard
        self.open: dict[str, dict[str, int]] = {}
        self.kept: dict[str, int] = {}
        self.heard: dict[str, int] = {}

    @rule(program=st.sampled_from("abc"), tokens=st.integers(1, 100), engine=st.sampled_from([E1, E2]))
    def begin(self, program: str, tokens: int, engine: EngineId) -> None:
        self._expire()
        self.number += 1
        began(self.demand, program, str(self.number), tokens, self.now, engine)
        self.open.setdefault(program, {})[str(self.number)] = tokens
        self.heard[program] = self.now

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data(), tokens=st.integers(0, 100))
    def end(self, data: st.DataObject, tokens: int) -> None:
        program = data.draw(st.sampled_from([each for each, calls in self.open.items() if calls]))
        call = data.draw(st.sampled_from(sorted(self.open[program])))
        del self.open[program][call]
        ended(self.demand, program, call, tokens, self.now, service_us=tokens)
        self.kept[program] = tokens or self.kept.get(program, 0)
        self.heard[program] = self.now

    @precondition(lambda self: self.heard)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        program = data.draw(st.sampled_from(sorted(self.heard)))
        self.demand.program_ended(key(program), self.now, is_whole=True)
        self.kept.pop(program, None)
        if not self.open.get(program):
            self.heard.pop(program)

    @rule(later=st.sampled_from([1, KEEP_US // 2, KEEP_US + 1]))
    def wait(self, later: int) -> None:
        self.now += later

    def _expire(self) -> None:
        for program in list(self.heard):
            if not self.open.get(program) and self.heard[program] + KEEP_US <= self.now:
                del self.heard[program]
                self.kept.pop(program, None)
        self.demand.signals(self.now)

    @invariant()
    def sums_are_right(self) -> None:
        self._expire()
        signals = self.demand.signals(self.now)
        tokens = {each: max(sum(self.open.get(each, {}).values()), self.kept.get(each, 0)) for each in self.heard}
        shared = (
            max(sum(calls.values()) // max(1, len(calls)), self.kept.get(each, 0))
            for each in self.heard
            for calls in [self.open.get(each, {})]
        )
        assert signals.least_context_tokens == sum(shared)
        assert signals.programs == len(self.heard)
        assert signals.calls == sum(map(len, self.open.values()))
        assert signals.context_tokens == sum(tokens.values()) == sum(signals.kept_tokens.values())
        assert sum(signals.kept_programs.values()) == len(self.heard)
        assert 0 <= signals.owed_us <= len(self.heard) * HORIZON_US


TestSums = Sums.TestCase
TestSums.settings = settings(max_examples=40, stateful_step_count=40)
