"""The bound on what any policy could give: exact where it can be worked out, and never below what policies give."""

from __future__ import annotations

import pytest
from agentserving.contract.policy import FCFS, PROGRAM_PLAS, Policy
from agentserving_replay.closed_loop import Loop, run_loop
from agentserving_replay.cluster import ClusterSpec
from agentserving_replay.traces.trace import Call
from agentserving_simulator.cost_model import CostModel, cost_model
from agentserving_simulator.virtual.limits import EngineLimits

from benchmarks.kv_bound import Trace, bound
from benchmarks.kv_programs import coding_agents

# A step of a lone call takes 10 ms; a prompt token 100 us, whatever its context.
PLAIN = CostModel(weights_us=10_000, kv_us_per_token=0, compute_us_per_token=100, attention_us_per_pair=0)


def turns(count: int, gap_s: float, prompt: int = 1000, output: int = 100) -> tuple[Call, ...]:
    """A program without tools' output: each call has the context before it and as many new tokens."""
    calls: list[Call] = []
    for number in range(count):
        before = number * (prompt + output)
        calls.append(
            Call(
                prompt_tokens=before + prompt,
                output_tokens=output,
                parents=(number - 1,) if number else (),
                extends=number - 1 if number else -1,
                shared_tokens=before,
                gap_s=gap_s if number else 0.0,
            )
        )
    return tuple(calls)


def test_with_any_memory_the_gpu_bounds() -> None:
    """A call has 100 ms of prompt; at 48 calls in a step of 10 ms its 100 tokens take 1000 / 48 ms more."""
    best = bound(Trace([turns(5, gap_s=30.0)]), PLAIN, kv_tokens=1e9)
    assert best.tokens_per_s == pytest.approx(100 / (0.1 + 1.0 / 48), rel=0.01)
    assert best.recomputing == 0


def test_contexts_are_computed_again_when_their_gaps_cost_more() -> None:
    short, long = turns(5, gap_s=0.1), turns(5, gap_s=10_000.0)
    assert bound(Trace([short]), PLAIN, kv_tokens=20_000).recomputing == 0
    assert bound(Trace([long]), PLAIN, kv_tokens=20_000).recomputing == pytest.approx(4 / 5)


def test_more_memory_is_never_worse() -> None:
    trace = Trace([turns(8, gap_s=5.0), turns(3, gap_s=300.0)])
    rates = [bound(trace, PLAIN, kv_tokens=kv).tokens_per_s for kv in (5_000, 20_000, 80_000, 320_000)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] / 2


@pytest.mark.parametrize("policy", [FCFS, PROGRAM_PLAS])
def test_no_policy_gives_more(policy: Policy) -> None:
    """Programs whose contexts exceed the cache fourfold, in a closed loop that has forgotten how it began."""
    programs, blocks = coding_agents(3, 1.0, 40), 1200
    cost = cost_model("a100-80gb", "llama-3.1-8b")
    spec = ClusterSpec(policy=policy, cost=cost, limits=EngineLimits(48, num_blocks=blocks))
    loop = Loop(concurrency=16, slo_ttft_s=5.0, duration_s=600.0, warmup_s=200.0)
    most = bound(Trace([program.calls for program in programs]), cost, blocks * 16).tokens_per_s
    assert run_loop(spec, programs, loop).tokens_per_s < 1.02 * most
