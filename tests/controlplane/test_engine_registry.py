"""Which engines get calls: health, drains, outlier ejection, last resorts, and when an engine is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving.contract.ids import CallId, EngineId
from agentserving_controlplane.engines import outliers, registry
from agentserving_controlplane.engines.engine import CALL_US, PREFILL_US_PER_TOKEN, SMOOTHING
from agentserving_controlplane.engines.facts import Capabilities, Load
from agentserving_controlplane.engines.health import EngineState, Health
from agentserving_controlplane.engines.load_balancer import MAX_NAMED, LoadBalancer, Wanted
from agentserving_controlplane.engines.registry import EngineRegistry
from agentserving_controlplane.errors import NotFoundError, UnavailableError
from agentserving_controlplane.table.states import Outcome
from controlplane.engine_builders import attached
from controlplane.table_builders import S, key
from hypothesis import given
from hypothesis import strategies as st


def usable(
    engines: EngineRegistry, *, exclude: str = "", model: str = "", holding: str = "", now: int = 0
) -> list[str]:
    """Ids of the engines that may take a call, in order of names; engines have names of one letter."""
    wanted = Wanted(
        program=key("p"), model=model, exclude=frozenset(map(EngineId, exclude)), holding=list(map(EngineId, holding))
    )
    try:
        return sorted(engine.engine_id for engine in LoadBalancer(engines).choose_many(wanted, now, count=10))
    except UnavailableError:
        return []


def ended(
    engines: EngineRegistry, name: str, outcome: Outcome, times: int = 1, now: int = 0, program: str = ""
) -> None:
    for number in range(times):
        root = key(program or f"p{number}")
        engines.call_ended(EngineId(name), root, outcome, now)


# -- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "state", "reason"),
    [
        ({}, EngineState.READY, ""),
        ({"health": Health.UNSPECIFIED}, EngineState.READY, ""),
        ({"attached": False, "health": Health.DOWN}, EngineState.LOST, "not attached"),
        ({"health": Health.DOWN}, EngineState.DOWN, "not running"),
        ({"health": Health.DOWN, "health_reason": "exit code 137"}, EngineState.DOWN, "exit code 137"),
        ({"health": Health.LOADING, "address": ""}, EngineState.LOADING, "starting"),
        ({"address": ""}, EngineState.LOADING, "address"),
        ({"health": Health.STUCK, "drained": True}, EngineState.STUCK, "no step"),
        ({"drained": True}, EngineState.DRAINING, "administrator"),
        ({"leaving": True}, EngineState.DRAINING, "leaving"),
    ],
)
def test_an_engine_has_the_most_serious_state_that_applies_and_a_reason(
    fields: dict[str, Any], state: EngineState, reason: str
) -> None:
    engines = EngineRegistry()
    condition = attached(engines, "a", **fields).condition
    assert condition.state is state
    assert reason in condition.reason
    assert bool(condition.reason) == (state is not EngineState.READY)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.REJECTED, Outcome.COMPLETED])
def test_what_becomes_known_of_an_earlier_process_is_no_evidence_about_the_engine(outcome: Outcome) -> None:
    """Calls that a crash broke end when the next process serves already."""
    engines = EngineRegistry()
    engine = attached(engines, "a", boot_id="old")
    attached(engines, "b")
    if outcome is Outcome.COMPLETED:
        engine.outliers.failures = outliers.FAILURES - 1
    engine.boot("new", 1_000)
    before = engine.outliers.failures
    for number in range(5):
        engines.call_ended(EngineId("a"), key(f"p{number}"), outcome, 0, "old", 500)
        engines.call_failed(EngineId("a"), 0, "old")
        # The old process had reported nothing of them yet.
        engines.call_ended(EngineId("a"), key(f"p{number}"), outcome, 0, "", 999)
        engines.call_failed(EngineId("a"), 0, admit_us=999)
    assert engine.condition.state is EngineState.READY
    assert engine.outliers.failures == before
    engines.call_failed(EngineId("a"), 0, "new", 500)
    engines.call_failed(EngineId("a"), 0, admit_us=1_000)
    assert engine.outliers.failures == before + 2


@pytest.mark.parametrize("health", [Health.DOWN, Health.LOADING, Health.STUCK])
def test_an_engine_that_does_not_serve_gets_no_call_while_another_does(health: Health) -> None:
    engines = EngineRegistry()
    attached(engines, "a", health=health)
    attached(engines, "b")
    assert usable(engines) == ["b"]
    assert usable(engines, exclude="b") == (["a"] if health is Health.STUCK else [])


def test_a_stuck_engine_queues_calls_only_as_the_last_one_and_while_its_sidecar_is_heard() -> None:
    engines = EngineRegistry()
    attached(engines, "a", health=Health.STUCK, heard_us=100 * S)
    assert usable(engines, now=100 * S + registry.BEAT_US) == ["a"]
    assert usable(engines, now=100 * S + registry.BEAT_US + 1) == []


def test_a_draining_engine_serves_only_programs_that_it_holds_and_no_other_engine_can() -> None:
    engines = EngineRegistry()
    attached(engines, "a", drained=True)
    assert usable(engines) == []
    assert usable(engines, holding="a") == ["a"]
    attached(engines, "b")
    assert usable(engines, holding="a") == ["b"]


def test_a_drain_applies_to_an_engine_that_attaches_later_until_it_is_ended() -> None:
    engines = EngineRegistry()
    engines.set_drained(EngineId("a"), True)
    assert attached(engines, "a").state is EngineState.DRAINING
    engines.set_drained(EngineId("a"), False)
    assert attached(engines, "a").state is EngineState.READY


def test_a_model_that_only_an_engine_without_calls_serves_is_refused_as_what_it_is() -> None:
    engines = EngineRegistry()
    attached(engines, "a", capabilities=Capabilities(models=("m",)))
    attached(engines, "b", capabilities=Capabilities(models=("m", "adapter")))
    assert usable(engines, model="adapter") == ["b"]
    with pytest.raises(NotFoundError, match="served: adapter, m"):
        usable(engines, model="unknown")
    engines.get(EngineId("b")).health = Health.DOWN
    with pytest.raises(NotFoundError, match="served: m"):
        usable(engines, model="adapter")


def test_a_lost_engine_is_forgotten_after_a_while_but_not_with_calls_in_flight() -> None:
    calls: dict[EngineId, dict[CallId, Any]] = {EngineId("b"): {CallId("c"): key("p")}}
    engines = EngineRegistry(lambda engine_id: calls.setdefault(engine_id, {}))
    for name in "abc":
        attached(engines, name)
    for name in "ab":
        engines.detach(engines.get(EngineId(name)), 10 * S)
    assert not engines.forget_lost(10 * S + registry.FORGET_LOST_US)
    assert [e.engine_id for e in engines.forget_lost(10 * S + registry.FORGET_LOST_US + 1)] == ["a"]
    calls[EngineId("b")].clear()
    engines.changed.add(EngineId("b"))
    assert [e.engine_id for e in engines.forget_lost(100 * S)] == ["b"]
    assert [e.engine_id for e in engines] == ["c"]


def test_the_prefill_costs_that_engines_measure_become_the_price_of_their_pool() -> None:
    engines = EngineRegistry()
    engine, other, third = (attached(engines, name) for name in "abc")
    (pool,) = engines.ranking.pools("")
    assert pool.us_per_token == PREFILL_US_PER_TOKEN
    engine.load = Load(prefill_us_per_token=239.4, prompt_tokens=100, cached_tokens=40)
    other.load = Load(prefill_us_per_token=60.6)
    engines.refresh()
    assert pool.us_per_token == 150
    third.capabilities = Capabilities(models=("m",))
    third.load = Load(prefill_us_per_token=10.0)
    engines.refresh()
    assert pool.us_per_token == 150
    engines.ranking.drop(other.engine_id)
    assert pool.us_per_token == 239.4
    assert engine.load.prefilled_tokens == 60
    before = engine.call_us
    engine.learn(8_000_000)
    assert engine.call_us == before + SMOOTHING * (8_000_000 - before)


def test_a_call_takes_in_a_pool_what_calls_took_on_its_engines_so_that_load_alone_orders_them() -> None:
    """An engine with short calls, because it computes contexts again and again, must not attract new programs."""
    engines = EngineRegistry()
    short, long = (attached(engines, name, capabilities=Capabilities(max_num_seqs=4)) for name in "ab")
    (pool,) = engines.ranking.pools("")
    assert pool.call_us == CALL_US
    for _ in range(100):
        short.learn(10_000)
        long.learn(30_000_000)
    engines.refresh()
    assert pool.call_us == (round(short.call_us) + round(long.call_us)) // 2
    short.calls = {CallId("1"): key("p"), CallId("2"): key("q")}
    long.calls = {CallId("3"): key("p")}
    chosen = LoadBalancer(engines).choose_many(Wanted(program=key("new"), prompt_tokens=1000), 0)
    assert [engine.engine_id for engine in chosen] == ["b", "a"]


def test_no_engine_is_a_refusal_that_names_the_states_and_when_to_retry() -> None:
    engines = EngineRegistry()
    attached(engines, "a", health=Health.DOWN)
    with pytest.raises(UnavailableError, match=r"\(a DOWN\)") as caught:
        LoadBalancer(engines).choose_many(Wanted(program=key("p")), 0)
    assert (caught.value.reason, caught.value.retry_after_s) == ("NO_ENGINE", 1.0)
    for number in range(MAX_NAMED):
        attached(engines, f"b{number}", health=Health.DOWN)
    with pytest.raises(UnavailableError, match="b6 DOWN, and 1 more"):
        LoadBalancer(engines).choose_many(Wanted(program=key("p")), 0)


def test_gateways_learn_of_engines_that_appear_move_change_their_state_or_go_and_of_nothing_else() -> None:
    engines = EngineRegistry()
    seen = [engines.facts_revision]

    def is_news() -> bool:
        seen.append(engines.facts_revision)
        return seen[-1] != seen[-2]

    engine = attached(engines, "a")
    assert is_news()
    engine.load = Load(running=7)
    engine.call_us = 7.0
    assert not is_news()
    engine.address = "elsewhere:8000"
    assert is_news()
    engine.health = Health.STUCK
    assert is_news()
    engines.detach(engine, 0)
    assert is_news()
    engines.forget_lost(registry.FORGET_LOST_US + 1)
    assert not is_news()


# -- outliers --------------------------------------------------------------------------------------------------------


def test_failures_in_a_row_eject_an_engine_and_one_trial_decides_when_it_comes_back() -> None:
    engines = EngineRegistry()
    calls: dict[CallId, Any] = {}
    attached(engines, "a", calls=calls)
    attached(engines, "b")
    ended(engines, "a", Outcome.FAILED, outliers.FAILURES - 1)
    assert usable(engines) == ["a", "b"]
    ended(engines, "a", Outcome.FAILED)
    assert engines.get(EngineId("a")).state is EngineState.FAILING
    assert usable(engines, now=outliers.EJECTION_US - 1) == ["b"]
    assert usable(engines, now=outliers.EJECTION_US) == ["a", "b"]
    calls[CallId("trial")] = key("p")
    engines.call_admitted(EngineId("a"), CallId("trial"))
    assert usable(engines, now=outliers.EJECTION_US) == ["b"], "one trial at a time"
    ended(engines, "a", Outcome.FAILED, now=outliers.EJECTION_US)
    assert usable(engines, now=3 * outliers.EJECTION_US - 1) == ["b"], "the second ejection is twice as long"
    assert usable(engines, now=3 * outliers.EJECTION_US) == ["a", "b"], "the trial, and an engine to fall back to"
    engines.call_admitted(EngineId("a"), CallId("trial"))
    ended(engines, "a", Outcome.COMPLETED)
    assert usable(engines) == ["a", "b"]


def test_a_trial_that_ends_without_evidence_is_followed_by_another() -> None:
    engines = EngineRegistry()
    calls: dict[CallId, Any] = {CallId("trial"): key("p")}
    attached(engines, "a", calls=calls)
    attached(engines, "b")
    ended(engines, "a", Outcome.FAILED, outliers.FAILURES)
    engines.call_admitted(EngineId("a"), CallId("trial"))
    assert usable(engines, now=outliers.EJECTION_US) == ["b"]
    calls.clear()
    engines.changed.add(EngineId("a"))
    ended(engines, "a", Outcome.CANCELLED)
    assert usable(engines, now=outliers.EJECTION_US) == ["a", "b"]


def test_a_success_between_failures_is_no_reason_to_eject() -> None:
    engines = EngineRegistry()
    attached(engines, "a")
    for _ in range(20):
        ended(engines, "a", Outcome.FAILED, outliers.FAILURES - 1)
        engines.get(EngineId("a")).learn(5)
    assert engines.get(EngineId("a")).state is EngineState.READY


def test_the_last_engine_still_gets_calls_whatever_it_answers() -> None:
    engines = EngineRegistry()
    attached(engines, "a")
    ended(engines, "a", Outcome.FAILED, 50)
    assert usable(engines) == ["a"]


def test_an_engine_that_rejects_calls_while_others_serve_theirs_is_ejected() -> None:
    engines = EngineRegistry()
    attached(engines, "a")
    attached(engines, "b", calls={CallId("long"): key("q")})
    ended(engines, "a", Outcome.REJECTED, outliers.REJECTIONS)
    assert usable(engines) == ["b"]
    assert "rejected" in engines.get(EngineId("a")).condition.reason


@pytest.mark.parametrize(
    ("others", "program"),
    [({}, ""), ({"calls": {CallId("c"): key("q")}}, "one-bad-client")],
    ids=["no other engine serves", "one program sends them all"],
)
def test_rejections_that_may_be_the_clients_fault_eject_no_engine(others: dict[str, Any], program: str) -> None:
    engines = EngineRegistry()
    attached(engines, "a")
    attached(engines, "b", **others)
    ended(engines, "a", Outcome.REJECTED, 50, program=program)
    assert usable(engines) == ["a", "b"]


def test_rejections_never_eject_more_than_half_of_the_engines() -> None:
    engines = EngineRegistry()
    for name in "abcd":
        attached(engines, name, calls={CallId("c"): key("q")})
    for name in "abcd":
        ended(engines, name, Outcome.REJECTED, 50)
    assert len(usable(engines)) >= 2


def test_a_new_boot_has_a_clean_record() -> None:
    engines = EngineRegistry()
    engine = attached(engines, "a")
    ended(engines, "a", Outcome.FAILED, 50)
    engine.boot("b2")
    assert engine.state is EngineState.READY


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(list(Outcome)), st.integers(0, 40)), max_size=60))
def test_while_engines_serve_some_engine_always_takes_calls(events: list[tuple[str, Outcome, int]]) -> None:
    engines = EngineRegistry()
    for name in "ab":
        attached(engines, name)
    now = 0
    for name, outcome, seconds in events:
        now += seconds * S
        (*_, chosen) = usable(engines, now=now)
        engines.call_admitted(EngineId(chosen), CallId("c"))
        ended(engines, name, outcome, now=now)
        assert usable(engines, now=now)
