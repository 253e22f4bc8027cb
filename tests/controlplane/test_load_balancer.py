"""Which engine runs a call: Algorithm 2 of the paper and the alternatives to it."""

from __future__ import annotations

from collections import Counter

import pytest
from agentserving.contract.ids import EngineId
from agentserving_controlplane.engines.contexts import MAX_OF_PROGRAM, Context, Contexts
from agentserving_controlplane.engines.facts import Load
from agentserving_controlplane.engines.load_balancer import SHORT_PROMPT_TOKENS, Balancer, LoadBalancer, Wanted
from agentserving_controlplane.engines.registry import EngineRegistry
from controlplane.engine_builders import loaded
from controlplane.table_builders import key
from hypothesis import given
from hypothesis import strategies as st


def cluster(kind: Balancer, **in_flight: int) -> LoadBalancer:
    """A balancer over engines with so many calls in flight."""
    engines = EngineRegistry()
    for name, calls in in_flight.items():
        loaded(engines, name, calls)
    return LoadBalancer(engines, kind)


def becomes(balancer: LoadBalancer, **in_flight: int) -> None:
    """Changes the number of calls in flight."""
    for name, calls in in_flight.items():
        loaded(balancer._engines, name, calls)


def chosen(balancer: LoadBalancer, program: str = "p", tokens: int = 10, *, exclude: str = "") -> str:
    wanted = Wanted(program=key(program), prompt_tokens=tokens, exclude=frozenset(map(EngineId, exclude)))
    return balancer.choose_many(wanted, 0)[0].engine_id


def test_round_robin_takes_turns() -> None:
    balancer = cluster(Balancer.ROUND_ROBIN, a=50, b=0, c=0)
    assert [chosen(balancer) for _ in range(4)] == ["a", "b", "c", "a"]


@given(loads=st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_least_used_never_takes_a_busier_engine(loads: list[int]) -> None:
    engines = EngineRegistry()
    for number, load in enumerate(loads):
        loaded(engines, f"e{number}", load)
    (best, *_) = LoadBalancer(engines, Balancer.LEAST_USED).choose_many(Wanted(program=key("p")), 0)
    assert best.in_flight == min(loads)


@pytest.mark.parametrize("kind", [Balancer.LEAST_USED, Balancer.PREFIX_AWARE])
def test_an_idle_cluster_is_used_evenly(kind: Balancer) -> None:
    balancer = cluster(kind, a=0, b=0, c=0)
    assert set(Counter(chosen(balancer, f"p{n}", 100) for n in range(30)).values()) == {10}


@pytest.mark.parametrize("kind", list(Balancer))
def test_fallbacks_are_the_next_best_engines(kind: Balancer) -> None:
    balancer = cluster(kind, a=0, b=1, c=2, d=3)
    engines = balancer.choose_many(Wanted(program=key("p"), prompt_tokens=10), 0)
    assert [engine.engine_id for engine in engines] == ["a", "b", "c"]
    only = balancer.choose_many(Wanted(program=key("p"), exclude=frozenset(map(EngineId, "abc"))), 0)
    assert [engine.engine_id for engine in only] == ["d"]


def test_another_kind_of_balancer_applies_from_the_next_choice_on() -> None:
    balancer = cluster(Balancer.ROUND_ROBIN, a=9, b=0)
    assert chosen(balancer) == "a"
    balancer.kind = Balancer.LEAST_USED
    assert [chosen(balancer) for _ in range(2)] == ["b", "b"]


def test_algorithm_2_keeps_long_calls_of_a_program_on_its_engine_and_short_ones_anywhere() -> None:
    balancer = cluster(Balancer.PROGRAM_LOCALITY, a=3, b=1)
    long, short = SHORT_PROMPT_TOKENS + 1, SHORT_PROMPT_TOKENS
    assert chosen(balancer, "p", long) == "b"
    becomes(balancer, a=0, b=50)
    assert chosen(balancer, "p", long) == "b"
    assert chosen(balancer, "p", short) == "a"
    assert chosen(balancer, "other", long) == "a"


def test_algorithm_2_gives_a_program_a_new_engine_when_its_own_is_gone() -> None:
    balancer = cluster(Balancer.PROGRAM_LOCALITY, a=0, b=1, c=2)
    assert chosen(balancer, "p", 5000) == "a"
    becomes(balancer, b=9, c=0)
    assert chosen(balancer, "p", 5000, exclude="a") == "c"
    becomes(balancer, b=0, c=9)
    assert chosen(balancer, "p", 5000) == "c"


def test_prefix_aware_returns_to_the_engine_that_holds_the_context() -> None:
    balancer = cluster(Balancer.PREFIX_AWARE, a=0, b=7)
    balancer.contexts.ran(key("p"), EngineId("b"), Context(20_000, 0))
    assert chosen(balancer, "p", 20_000) == "b"


def test_prefix_aware_leaves_a_context_behind_when_the_queue_costs_more_than_the_prefill() -> None:
    balancer = cluster(Balancer.PREFIX_AWARE, a=0, b=40)
    balancer.contexts.ran(key("p"), EngineId("b"), Context(2_000, 0))
    # 2,000 tokens are 0.1 s of prefill; 40 calls ahead on 8 slots are seconds.
    assert chosen(balancer, "p", 2_000) == "a"


@given(measured=st.lists(st.floats(0, 5_000), min_size=3, max_size=3))
def test_what_engines_have_measured_does_not_decide_where_new_programs_go(measured: list[float]) -> None:
    """It differs by the calls that they have run, and one that gets no calls never measures again."""
    balancer = cluster(Balancer.PREFIX_AWARE, a=0, b=0, c=0)
    for name, us_per_token in zip("abc", measured, strict=True):
        balancer._engines.get(EngineId(name)).load = Load(prefill_us_per_token=us_per_token)
    assert set(Counter(chosen(balancer, f"p{n}", 100_000) for n in range(30)).values()) == {10}


def test_a_context_is_worth_what_engines_measure_on_average() -> None:
    balancer = cluster(Balancer.PREFIX_AWARE, a=0, b=12)
    balancer.contexts.ran(key("p"), EngineId("b"), Context(2_000, 0))
    # 2,000 tokens are 0.1 s of prefill; 12 calls on 8 slots are more.
    assert chosen(balancer, "p", 2_000) == "a"
    for name in "ab":
        balancer._engines.get(EngineId(name)).load = Load(prefill_us_per_token=1_000.0)
    assert chosen(balancer, "p", 2_000) == "b"


def test_a_context_is_forgotten_as_the_engine_prefills_others() -> None:
    engines = EngineRegistry()
    context = Context(10_000, 5_000)
    hits = [context.hit_tokens(10_000, loaded(engines, "b", prefilled=5_000 + n)) for n in (0, 50_000, 100_000, -1)]
    assert hits == [9_000, 5_000, 0, 0]


def test_contexts_are_bounded_per_program_and_in_all_and_the_least_recently_used_go_first() -> None:
    contexts = Contexts(limit=40)
    for number in range(MAX_OF_PROGRAM + 1):
        contexts.ran(key("wide"), EngineId(f"e{number}"), Context(1, 0))
    assert list(contexts.of(key("wide"))) == [f"e{number}" for number in range(1, MAX_OF_PROGRAM + 1)]
    for number in range(40):
        contexts.ran(key(f"p{number}"), EngineId("e"), Context(1, 0))
    assert not contexts.of(key("wide"))
    assert all(contexts.of(key(f"p{number}")) for number in range(40))
