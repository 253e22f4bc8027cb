"""The maintained order of engines gives the same choices as scoring every engine, and looks at a few only."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving.contract.ids import CallId, EngineId, ProgramKey
from agentserving_controlplane.engines.contexts import Context
from agentserving_controlplane.engines.engine import CALL_PARTS, CALL_US, PREFILL_US_PER_TOKEN, Engine
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import EngineState, Health
from agentserving_controlplane.engines.load_balancer import SHORT_PROMPT_TOKENS, Balancer, LoadBalancer, Wanted
from agentserving_controlplane.engines.outliers import FAILURES
from agentserving_controlplane.engines.registry import BEAT_US, EngineRegistry
from agentserving_controlplane.errors import NotFoundError, UnavailableError
from agentserving_controlplane.table.states import Outcome
from controlplane.engine_builders import attached, loaded
from controlplane.table_builders import S, key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

ENGINES = [EngineId(name) for name in "abcdef"]
engine_ids = st.sampled_from(ENGINES)
programs = st.sampled_from([key(name) for name in "pqr"])
models = st.sampled_from(["", "m", "n", "unknown"])


class Reference:
    """Scores every engine for each call. Ties go to the least recently chosen engine, then to the oldest."""

    def __init__(self, kind: Balancer) -> None:
        self.kind = kind
        self.engines: list[Engine] = []
        self.order: list[EngineId] = []
        self.chosen: dict[EngineId, int] = {}
        self.choices = 0
        self.homes: dict[ProgramKey, EngineId] = {}
        self.contexts: dict[tuple[ProgramKey, EngineId], Context] = {}

    def choose_many(self, engines: list[Engine], wanted: Wanted, now: int, count: int) -> list[Engine]:
        self.engines = engines
        known = [e for e in engines if e.engine_id not in wanted.exclude and self.serves(e, wanted.model)]
        by_state = {state: [e for e in known if e.state is state] for state in EngineState}
        trials = [e for e in by_state[EngineState.FAILING] if e.outliers.may_try(e.calls, now)]
        trials.sort(key=lambda e: (e.outliers.until_us, self.order.index(e.engine_id)))
        draining = [e for e in by_state[EngineState.DRAINING] if e.engine_id in wanted.holding]
        stuck = [e for e in by_state[EngineState.STUCK] if e.address and now - e.heard_us <= BEAT_US]
        usable = by_state[EngineState.READY] or draining or by_state[EngineState.FAILING] or stuck
        first = trials[:1]
        ranked = sorted((e for e in usable if e not in first), key=lambda e: self.score(e, wanted))
        found = [*first, *ranked][:count]
        if found:
            self.choices += 1
            self.chosen[found[0].engine_id] = self.choices
            if self.kind is Balancer.PROGRAM_LOCALITY and wanted.prompt_tokens > SHORT_PROMPT_TOKENS:
                self.homes[wanted.program] = found[0].engine_id
        return found

    def price(self, engine: Engine) -> float:
        """The mean of what engines with the same models have measured, in microseconds a token."""
        same = [each for each in self.engines if each.capabilities.models == engine.capabilities.models]
        measured = [round(1000 * each.load.prefill_us_per_token) for each in same if each.load.prefill_us_per_token]
        return sum(measured) / (1000 * len(measured)) if measured else PREFILL_US_PER_TOKEN

    def call_us(self, engine: Engine) -> int:
        """The mean service of a call on engines with the same models, in microseconds."""
        same = [each for each in self.engines if each.capabilities.models == engine.capabilities.models]
        measured = [round(each.call_us) for each in same if each.call_us != CALL_US]
        return sum(measured) // len(measured) if measured else int(CALL_US)

    @staticmethod
    def serves(engine: Engine, model: str) -> bool:
        return not model or not engine.capabilities.models or model in engine.capabilities.models

    def score(self, engine: Engine, wanted: Wanted) -> tuple[int, int, int]:
        tie = (self.chosen.get(engine.engine_id, 0), self.order.index(engine.engine_id))
        match self.kind:
            case Balancer.ROUND_ROBIN:
                return 0, *tie
            case Balancer.PROGRAM_LOCALITY if wanted.prompt_tokens > SHORT_PROMPT_TOKENS:
                is_home = self.homes.get(wanted.program) == engine.engine_id
                return -1 if is_home else engine.in_flight, *tie
            case Balancer.LEAST_USED | Balancer.PROGRAM_LOCALITY:
                return engine.in_flight, *tie
            case Balancer.PREFIX_AWARE:
                context = self.contexts.get((wanted.program, engine.engine_id), Context(0, 0))
                missing = wanted.prompt_tokens - context.hit_tokens(wanted.prompt_tokens, engine)
                waits = engine.queue_load * self.call_us(engine)
                return waits + CALL_PARTS * int(missing * self.price(engine)), *tie


class ChoiceMachine(RuleBasedStateMachine):
    """Engines come, change and go in any order, while calls are admitted and end."""

    @initialize(kind=st.sampled_from(list(Balancer)), engines=st.sets(engine_ids, min_size=1))
    def begin(self, kind: Balancer, engines: set[EngineId]) -> None:
        self.now = 0
        self.calls: dict[EngineId, dict[CallId, ProgramKey]] = {}
        self.changed: set[EngineId] = set()
        self.engines = EngineRegistry(lambda engine_id: self.calls.setdefault(engine_id, {}), self.changed)
        self.balancer, self.reference = LoadBalancer(self.engines, kind), Reference(kind)
        self.number = 0
        for engine_id in sorted(engines):
            self.attach(engine_id, slots=4, model=())

    @rule(engine_id=engine_ids, slots=st.integers(1, 8), model=st.sampled_from([(), ("m",), ("m", "n")]))
    def attach(self, engine_id: EngineId, slots: int, model: tuple[str, ...]) -> None:
        capabilities = Capabilities(max_num_seqs=slots, num_blocks=100, block_size=100, models=model)
        attached(self.engines, engine_id, capabilities=capabilities, heard_us=self.now)
        if engine_id not in self.reference.order:
            self.reference.order.append(engine_id)

    @rule(engine_id=engine_ids, health=st.sampled_from(list(Health)))
    def reports_health(self, engine_id: EngineId, health: Health) -> None:
        if engine_id in self.engines.engines:
            self.engines.get(engine_id).health = health

    @rule(engine_id=engine_ids, cost=st.sampled_from([0.0, 10.0, 49.0, 50.0, 52.0, 400.0]), prefilled=st.integers(0, 9))
    def reports_load(self, engine_id: EngineId, cost: float, prefilled: int) -> None:
        if engine_id in self.engines.engines:
            engine = self.engines.get(engine_id)
            engine.load = Load(prefill_us_per_token=cost, prompt_tokens=1000 * prefilled)

    @rule(engine_id=engine_ids)
    def fails_its_calls(self, engine_id: EngineId) -> None:
        for _ in range(FAILURES):
            self.engines.call_failed(engine_id, self.now)

    @rule(engine_id=engine_ids, drained=st.booleans())
    def drains(self, engine_id: EngineId, drained: bool) -> None:
        self.engines.set_drained(engine_id, drained)

    @rule(engine_id=engine_ids)
    def is_lost(self, engine_id: EngineId) -> None:
        if engine_id in self.engines.engines:
            self.engines.detach(self.engines.get(engine_id), self.now)

    @rule()
    def forgets_lost_engines(self) -> None:
        for engine in self.engines.forget_lost(self.now):
            self.reference.order.remove(engine.engine_id)
            self.reference.chosen.pop(engine.engine_id, None)

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * S

    @rule(
        program=programs,
        tokens=st.sampled_from([0, 10, 2_000, 3_000, 50_000]),
        model=models,
        exclude=st.sets(engine_ids, max_size=2),
        holding=st.sets(engine_ids, max_size=3),
        count=st.integers(1, 7),
    )
    def admits(self, program: ProgramKey, tokens: int, model: str, count: int, **ids: Any) -> None:
        wanted = Wanted(
            program=program, prompt_tokens=tokens, model=model,
            exclude=frozenset(ids["exclude"]), holding=sorted(ids["holding"]),
        )  # fmt: skip
        expected = self.reference.choose_many(list(self.engines), wanted, self.now, count)
        try:
            found = self.balancer.choose_many(wanted, self.now, count)
        except (UnavailableError, NotFoundError):
            found = []
        assert [engine.engine_id for engine in found] == [engine.engine_id for engine in expected]
        if found:
            self.number += 1
            call_id, engine_id = CallId(str(self.number)), found[0].engine_id
            self.calls[engine_id][call_id] = program
            self.changed.add(engine_id)
            self.engines.call_admitted(engine_id, call_id)

    @rule(engine_id=engine_ids, outcome=st.sampled_from(list(Outcome)), tokens=st.integers(0, 60_000))
    def ends_its_oldest_call(self, engine_id: EngineId, outcome: Outcome, tokens: int) -> None:
        if not self.calls.get(engine_id) or engine_id not in self.engines.engines:
            return
        call_id = next(iter(self.calls[engine_id]))
        program = self.calls[engine_id].pop(call_id)
        self.changed.add(engine_id)
        engine = self.engines.get(engine_id)
        if outcome is Outcome.COMPLETED:
            engine.learn(tokens * 50)
        else:
            self.engines.call_ended(engine_id, program, outcome, self.now)
        self.balancer.ran(program, engine, tokens)
        self.reference.contexts[program, engine_id] = Context(tokens, engine.load.prefilled_tokens)

    @invariant()
    def counts_agree_with_the_engines(self) -> None:
        self.engines.refresh()
        assert self.engines.ranking.ready == sum(e.state is EngineState.READY for e in self.engines)


TestChoices = ChoiceMachine.TestCase
TestChoices.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class Examined(frozenset[EngineId]):
    """An exclusion of no engine that counts the engines of which it is asked."""

    count = 0

    def __contains__(self, engine_id: object) -> bool:
        self.count += 1
        return False


def work(kind: Balancer, engines: int) -> int:
    """The most engines that one of 100 choices examines, each of which makes its engine busier."""
    registry = EngineRegistry()
    for number in range(engines):
        loaded(registry, f"e{number}", prefill=50 + number % 3)
    balancer, most = LoadBalancer(registry, kind), 0
    for number in range(100):
        exclude = Examined()
        wanted = Wanted(program=key(f"p{number % 10}"), prompt_tokens=5_000, exclude=exclude)
        (engine, *_) = balancer.choose_many(wanted, 0)
        assert engine.calls is not None
        engine.calls = {**engine.calls, CallId(str(number)): key("p")}
        assert registry.changed == {engine.engine_id}, "only this engine is examined before the next choice"
        balancer.ran(key(f"p{number % 10}"), engine, 5_000)
        most = max(most, exclude.count)
    return most


@pytest.mark.parametrize("kind", list(Balancer))
def test_a_choice_looks_at_as_many_of_2000_engines_as_of_20(kind: Balancer) -> None:
    assert work(kind, 2_000) <= work(kind, 20) <= 30
