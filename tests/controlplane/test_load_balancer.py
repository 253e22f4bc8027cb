"""Which engine runs a call: Algorithm 2 of the paper and the alternatives to it."""

from __future__ import annotations

from collections import Counter

import pytest
from agentserving.contract.ids import EngineId
from agentserving_controlplane.engines.load_balancer import SHORT_PROMPT_TOKENS, Balancer, Candidate, LoadBalancer
from controlplane.table_builders import key
from hypothesis import given
from hypothesis import strategies as st


def engine(name: str, in_flight: int = 0, *, prefilled: int = 0, slots: int = 8, **fields: float) -> Candidate:
    return Candidate(
        engine_id=EngineId(name),
        in_flight=in_flight,
        max_num_seqs=slots,
        capacity_tokens=100_000,
        prefilled_tokens=prefilled,
        **fields,
    )


candidates = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 10**6)), min_size=1, max_size=6
).map(lambda drawn: [engine(f"e{i}", load, prefilled=tokens) for i, (load, tokens) in enumerate(drawn)])  # fmt: skip


@pytest.mark.parametrize("kind", list(Balancer))
@given(engines=candidates, calls=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**6)), max_size=20))
def test_every_choice_is_one_of_the_candidates(
    kind: Balancer, engines: list[Candidate], calls: list[tuple[str, int]]
) -> None:
    balancer = LoadBalancer(kind)
    for program, tokens in calls:
        chosen = balancer.choose(key(program), tokens, engines)
        assert chosen in engines
        balancer.ran(key(program), chosen.engine_id, tokens, chosen.prefilled_tokens)


def test_round_robin_takes_turns() -> None:
    balancer = LoadBalancer(Balancer.ROUND_ROBIN)
    engines = [engine("a", 50), engine("b"), engine("c")]
    assert [balancer.choose(key("p"), 0, engines).engine_id for _ in range(4)] == ["a", "b", "c", "a"]


@given(engines=candidates)
def test_least_used_never_takes_a_busier_engine(engines: list[Candidate]) -> None:
    chosen = LoadBalancer(Balancer.LEAST_USED).choose(key("p"), 10, engines)
    assert chosen.in_flight == min(e.in_flight for e in engines)


@pytest.mark.parametrize("kind", [Balancer.LEAST_USED, Balancer.PREFIX_AWARE])
def test_an_idle_cluster_is_used_evenly(kind: Balancer) -> None:
    balancer = LoadBalancer(kind)
    engines = [engine("a"), engine("b"), engine("c")]
    chosen = Counter(balancer.choose(key(f"p{n}"), 100, engines).engine_id for n in range(30))
    assert set(chosen.values()) == {10}


def test_algorithm_2_keeps_long_calls_of_a_program_on_its_engine_and_short_ones_anywhere() -> None:
    balancer = LoadBalancer(Balancer.PROGRAM_LOCALITY)
    long, short = SHORT_PROMPT_TOKENS + 1, SHORT_PROMPT_TOKENS
    home = balancer.choose(key("p"), long, [engine("a", 3), engine("b", 1)])
    assert home.engine_id == "b"
    crowded = [engine("a"), engine("b", 50)]
    assert balancer.choose(key("p"), long, crowded).engine_id == "b"
    assert balancer.choose(key("p"), short, crowded).engine_id == "a"
    assert balancer.choose(key("other"), long, crowded).engine_id == "a"


def test_algorithm_2_gives_a_program_a_new_engine_when_its_own_is_gone() -> None:
    balancer = LoadBalancer(Balancer.PROGRAM_LOCALITY)
    assert balancer.choose(key("p"), 5000, [engine("a"), engine("b", 1)]).engine_id == "a"
    assert balancer.choose(key("p"), 5000, [engine("b", 9), engine("c")]).engine_id == "c"
    assert balancer.choose(key("p"), 5000, [engine("b"), engine("c", 9)]).engine_id == "c"


def test_prefix_aware_returns_to_the_engine_that_holds_the_context() -> None:
    balancer = LoadBalancer(Balancer.PREFIX_AWARE)
    balancer.ran(key("p"), EngineId("b"), 20_000, prefilled_tokens=0)
    assert balancer.choose(key("p"), 20_000, [engine("a"), engine("b", 7)]).engine_id == "b"


def test_prefix_aware_leaves_a_context_behind_when_the_queue_costs_more_than_the_prefill() -> None:
    balancer = LoadBalancer(Balancer.PREFIX_AWARE)
    balancer.ran(key("p"), EngineId("b"), 2_000, prefilled_tokens=0)
    # 2,000 tokens are 0.1 s of prefill; 40 calls ahead on 8 slots are seconds.
    assert balancer.choose(key("p"), 2_000, [engine("a"), engine("b", 40)]).engine_id == "a"


def test_a_context_is_forgotten_as_the_engine_prefills_others() -> None:
    balancer = LoadBalancer(Balancer.PREFIX_AWARE)
    balancer.ran(key("p"), EngineId("b"), 10_000, prefilled_tokens=5_000)
    hits = [balancer.expected_hit(key("p"), 10_000, engine("b", prefilled=5_000 + n)) for n in (0, 50_000, 100_000)]
    assert hits == [9_000, 5_000, 0]
