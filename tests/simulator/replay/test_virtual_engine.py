"""The engine in virtual time: batched steps are exact, nothing is lost, and the policy's rules hold at scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentserving.contract.ids import ProgramId, ProgramKey, Tenant
from agentserving.contract.policy import ATLAS, FCFS, GITTINS, MLFQ, PLAS, PROGRAM_FCFS, PROGRAM_PLAS, Policy
from agentserving_controlplane.policy import gittins
from agentserving_engine.policy import CallFacts, PrefillCost
from agentserving_replay import cluster as replayed
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import figures
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel, cost_model
from agentserving_simulator.virtual import engine as virtual_engine
from agentserving_simulator.virtual.context_cache import Segment
from agentserving_simulator.virtual.engine import VirtualEngine
from agentserving_simulator.virtual.limits import EngineLimits
from agentserving_simulator.virtual.requests import Request
from hypothesis import example, given, settings
from hypothesis import strategies as st

A100 = cost_model("a100-80gb", "llama-3.1-8b")
# Whole microseconds in every case, so that the time of a stretch is the sum of its steps.
WHOLE = CostModel(
    weights_us=8000,
    kv_us_per_token=2,
    compute_us_per_token=100,
    attention_us_per_pair=2,
    base_us=500,
    call_us=10,
    num_blocks=600,
)
LARGE = EngineLimits()
SMALL = EngineLimits(max_num_seqs=4, max_batched_tokens=256)

programs = st.lists(
    st.tuples(
        st.integers(0, 2_000_000),
        st.lists(st.tuples(st.integers(1, 600), st.integers(1, 120), st.booleans()), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=12,
)

# Levels are recomputed in the middle of a stretch, when the service of its steps so far must count.
LEVELS_RECOMPUTED_IN_A_STRETCH = [
    (0, [(1, 37, False)]),
    (1, [(1, 36, False)]),
    (1, [(1, 34, False)]),
    (753073, [(461, 1, False)]),
    (0, [(1, 1, False), (442, 2, False)]),
    (1, [(1, 1, False), (347, 33, False)]),
    (0, [(1, 1, False), (1, 1, False), (1, 1, False), (190, 2, False)]),
]


def chains(drawn: list[tuple[int, list[tuple[int, int, bool]]]]) -> list[Program]:
    """Programs of sequential calls; a call extends its predecessor's context or starts a new one."""
    chained = []
    for number, (arrival_us, drawn_calls) in enumerate(drawn):
        calls: list[Call] = []
        for at, (new, output, extends) in enumerate(drawn_calls):
            before = calls[-1].prompt_tokens + calls[-1].output_tokens if calls and extends else 0
            calls.append(
                Call(
                    prompt_tokens=before + new, output_tokens=output, parents=(at - 1,) if at else (),
                    extends=at - 1 if before else -1, shared_tokens=before,
                )
            )  # fmt: skip
        chained.append(Program(ProgramId(f"p{number}"), "chain", arrival_us / 1e6, tuple(calls)))
    return chained


def run(
    replayed_programs: list[Program], policy: Policy, cost: CostModel = A100, limits: EngineLimits = LARGE, **more: int
):
    cluster = VirtualCluster(ClusterSpec(policy=policy, cost=cost, limits=limits, **more))
    cluster.add(replayed_programs)
    cluster.run()
    return cluster


# Retained contexts are refreshed only at the first step of a stretch, so with retention a stretch is not exact.
FORGETFUL_GITTINS = replace(GITTINS, retention_milli=0)
RETAINING = replace(PROGRAM_PLAS, retention_milli=20_000)


@settings(max_examples=60, deadline=None)
@given(
    programs, st.sampled_from([FCFS, PROGRAM_FCFS, MLFQ, PLAS, ATLAS, FORGETFUL_GITTINS]), st.sampled_from([1, 4, 8])
)
@example(LEVELS_RECOMPUTED_IN_A_STRETCH, FORGETFUL_GITTINS, 1)
def test_a_stretch_equals_its_single_steps(drawn: list, policy: Policy, interval: int) -> None:
    policy = replace(policy, decision_interval_steps=interval)
    with pytest.MonkeyPatch.context() as patch:
        # The prefill cost is learned, and a stretch is one observation: the only permitted difference.
        patch.setattr(PrefillCost, "observe", lambda self, *_: setattr(self, "us_per_token", 100.0))
        # A few programs and a short run suffice for levels to be recomputed within it.
        patch.setattr(gittins, "MIN_SAMPLES", 2)
        patch.setattr(replayed, "RELEVEL_US", 700_000)
        stretched = run(chains(drawn), policy, WHOLE, SMALL)
        patch.setattr(virtual_engine.VirtualEngine, "_steps", lambda *_: 1)
        one_by_one = run(chains(drawn), policy, WHOLE, SMALL)
    assert stretched.engines[0].model.counters == one_by_one.engines[0].model.counters
    assert sorted(stretched.results, key=str) == sorted(one_by_one.results, key=str)


@settings(max_examples=60, deadline=None)
@given(programs, st.sampled_from([FCFS, MLFQ, PLAS, RETAINING]), st.integers(60, 200), st.sampled_from([0, 100]))
def test_every_program_ends_and_every_block_is_freed(
    drawn: list, policy: Policy, blocks: int, host_blocks: int
) -> None:
    replayed_programs = chains(drawn)
    limits = replace(SMALL, num_blocks=5 * 720 // 16 + blocks, host_blocks=host_blocks)
    cluster = run(replayed_programs, policy, WHOLE, limits)
    engine = cluster.engines[0].model
    assert len(cluster.results) == len(replayed_programs)
    assert engine.cache.used == 0
    assert engine.queue.waiting_count == 0
    assert not engine.queue.running_keys
    assert engine.counters.output_tokens == sum(program.output_tokens for program in replayed_programs)
    tokens = {result.output_tokens for result in cluster.results}
    assert tokens == {program.output_tokens for program in replayed_programs}


def lone(engine: VirtualEngine, key: str, prompt: int, output: int, now_us: int) -> None:
    request = Request(key, [Segment(0, prompt + output)], prompt, output)
    engine.arrive(request, CallFacts(key, ProgramKey(Tenant("default"), ProgramId(key))), now_us)


def test_a_lone_call_takes_its_prefill_and_one_step_per_token() -> None:
    engine = VirtualEngine(FCFS, WHOLE, EngineLimits())
    lone(engine, "a", 100, 11, 0)
    first = engine.begin(0)
    assert first == WHOLE.step_us(100, 100, 1, 100 * 50)
    assert engine.end(first) == []
    last = engine.begin(first)
    assert last == first + sum(WHOLE.step_us(1, 101 + step, 1) for step in range(10))
    (ended,) = engine.end(last)
    assert (ended.stats.service_us, ended.stats.wait_us, ended.request.first_token_us) == (last, 0, first)


def test_a_call_that_arrives_in_a_stretch_starts_with_the_next_step() -> None:
    engine = VirtualEngine(FCFS, WHOLE, EngineLimits())
    lone(engine, "a", 100, 1000, 0)
    began = engine.begin(0)
    engine.end(began)
    assert engine.begin(began) > began + 8_000_000 / 2
    now = began + 20_000
    lone(engine, "b", 50, 5, now)
    cut = engine.cut(now)
    steps = [began + sum(WHOLE.step_us(1, 101 + i, 1) for i in range(n)) for n in range(1, 5)]
    assert cut == min(step for step in steps if step >= now)
    engine.end(cut)
    assert engine.begin(cut) == cut + WHOLE.step_us(51, engine.requests["a"].total + 52, 2) or engine.busy


def test_a_call_that_can_never_fit_is_refused_with_its_size() -> None:
    engine = VirtualEngine(FCFS, WHOLE, EngineLimits(num_blocks=10))
    with pytest.raises(ValueError, match="call a needs 13 blocks of KV, the engine has 10"):
        lone(engine, "a", 150, 50, 0)


def test_the_same_seed_gives_the_same_run() -> None:
    once, again = (run(generate("mixed", 3, 0.5, 40), ATLAS, engines=2) for _ in range(2))
    assert once.results == again.results


def test_preemption_is_bounded_where_preempted_calls_lose_their_kv() -> None:
    """At prefill saturation PLAS would preempt every call for a newcomer: without a bound no call would ever end."""
    replayed_programs = generate("map-reduce", 0, 0.4, 60)
    by_policy = {p.name: run(replayed_programs, replace(p, decision_interval_steps=8)) for p in (FCFS, PLAS)}
    by_name = {name: figures(cluster, cluster.results) for name, cluster in by_policy.items()}
    assert by_name["plas"].recomputed < 0.15
    assert by_name["plas"].makespan_s < 1.15 * by_name["fcfs"].makespan_s


def test_short_replayed_programsgain_by_plas_at_overload() -> None:
    replayed_programs = generate("sharegpt", 1, 3.0, 250)
    fcfs, plas = (run(replayed_programs, replace(p, decision_interval_steps=8)) for p in (FCFS, PLAS))
    assert figures(plas, plas.results).token_ms < 0.8 * figures(fcfs, fcfs.results).token_ms


def agents(count: int, tool_s: float, *, tokens: int = 4000, rounds: int = 12) -> list[Program]:
    """Programs that arrive together and extend their own contexts, with a tool between calls."""
    calls = [Call(prompt_tokens=tokens, output_tokens=20)]
    for at in range(1, rounds):
        known = calls[-1].prompt_tokens + calls[-1].output_tokens
        calls.append(
            Call(
                prompt_tokens=known + 100, output_tokens=20, parents=(at - 1,), gap_s=tool_s, extends=at - 1,
                shared_tokens=known,
            )
        )  # fmt: skip
    return [Program(ProgramId(f"p{number}"), "agent", 0.01 * number, tuple(calls)) for number in range(count)]


def figures_of(replayed_programs: list[Program], policy: Policy, blocks: int, host_blocks: int = 0):
    cluster = run(replayed_programs, policy, A100, replace(LARGE, num_blocks=blocks, host_blocks=host_blocks))
    return figures(cluster, cluster.results)


def test_replayed_programswhose_contexts_do_not_fit_together_keep_theirs_while_their_tools_work() -> None:
    # Each context grows to 5,320 tokens: three of ten fit.
    replayed_programs, forgetful = agents(10, 0.3), replace(PROGRAM_PLAS, retention_milli=0)
    retained, evicted = (
        figures_of(replayed_programs, replace(forgetful, retention_milli=3_000), 1100),
        figures_of(replayed_programs, forgetful, 1100),
    )
    assert retained.prefix_hits > evicted.prefix_hits + 0.2
    assert retained.latency_s < 0.8 * evicted.latency_s
    assert retained.latency_p99_s < evicted.latency_p99_s


def test_nothing_is_kept_for_replayed_programswhose_tools_take_longer_than_to_compute_again() -> None:
    replayed_programs, forgetful = agents(10, 60.0), replace(PROGRAM_PLAS, retention_milli=0)
    retained, evicted = (
        figures_of(replayed_programs, replace(forgetful, retention_milli=3_000), 1100),
        figures_of(replayed_programs, forgetful, 1100),
    )
    assert retained.latency_s < 1.02 * evicted.latency_s


def test_no_call_waits_for_retained_contexts_where_all_fit() -> None:
    replayed_programs, forgetful = agents(10, 0.3), replace(PROGRAM_PLAS, retention_milli=0)
    assert figures_of(replayed_programs, replace(forgetful, retention_milli=3_000), 4000) == figures_of(
        replayed_programs, forgetful, 4000
    )


def test_nothing_is_retained_where_host_memory_restores_it() -> None:
    replayed_programs, forgetful = agents(10, 0.3), replace(PROGRAM_PLAS, retention_milli=0)
    keeping = replace(forgetful, retention_milli=3_000)
    assert figures_of(replayed_programs, keeping, 1100, 10_000) == figures_of(
        replayed_programs, forgetful, 1100, 10_000
    )
