"""The benchmark under KV pressure: its programs, its load and its comparisons."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from agentserving.contract.ids import ProgramId
from agentserving.contract.policy import PRESETS
from agentserving_replay.traces.trace import Call, Program
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual.limits import EngineLimits
from msgspec import structs

from benchmarks.bars import Verdict
from benchmarks.kv_pressure import bases, summarise, tables, variants
from benchmarks.kv_programs import (
    AGENTS,
    CHATS,
    MAX_CONTEXT,
    MOST_TOOL_S,
    Shape,
    coding_agents,
    fitted_rate,
    in_turn,
    pressure,
)
from benchmarks.program_figures import figures, ratios, tool_s, with_interval
from benchmarks.validation import latencies_s, simulate

COUNTS = {"cached_tokens": 30, "prompt_tokens": 120, "preemptions_proactive": 2, "preemptions_reactive": 1}


def program(arrival_s: float, *calls: tuple[int, int, float]) -> Program:
    """A program of (prompt, output, gap) calls."""
    sequence = tuple(
        Call(prompt_tokens=prompt, output_tokens=output, parents=(at - 1,) if at else (), gap_s=gap_s)
        for at, (prompt, output, gap_s) in enumerate(calls)
    )
    return Program(ProgramId(f"p{arrival_s}"), "agent", arrival_s, sequence)


def test_coding_agents_grow_their_contexts_call_by_call() -> None:
    drawn = coding_agents(0, 1.0, 300)
    assert statistics.fmean(len(each.calls) for each in drawn) == pytest.approx(13, abs=1)
    for each in drawn:
        context = 0
        for at, call in enumerate(each.calls):
            assert call.shared_tokens == context < call.prompt_tokens
            assert call.parents == ((at - 1,) if at else ())
            assert 8 <= call.output_tokens <= 40
            assert (0.3 if at else 0.0) <= call.gap_s <= (MOST_TOOL_S if at else 0.0)
            context = call.prompt_tokens + call.output_tokens
        assert context <= MAX_CONTEXT
    last = sorted(each.calls[-1].prompt_tokens for each in drawn)
    assert (last[15], last[-15]) == (pytest.approx(1550, rel=0.1), pytest.approx(4500, rel=0.1))


@pytest.mark.parametrize("shape", [AGENTS, CHATS])
def test_a_seed_draws_the_same_programs_at_every_rate(shape: Shape) -> None:
    slow, fast = shape.draw(3, 0.5, 40), shape.draw(3, 2.0, 40)
    assert [each.calls for each in slow] == [each.calls for each in fast]
    assert [each.arrival_s for each in slow] == pytest.approx([4 * each.arrival_s for each in fast])
    assert [each.calls for each in slow] != [each.calls for each in shape.draw(4, 0.5, 40)]
    assert all(each.calls for each in slow)


def test_pressure_counts_a_program_from_its_arrival_to_its_end() -> None:
    # 110 and 320 tokens for 10 s, 50 for 5 of them.
    programs = [program(0.0, (100, 10, 0.0), (300, 20, 1.0)), program(5.0, (40, 10, 0.0))]
    assert pressure(programs, [10.0, 5.0], pool_tokens=100) == pytest.approx((215 * 10 + 50 * 5) / 100 / 10)


def test_the_rate_is_fitted_to_the_pressure() -> None:
    rate = fitted_rate(replace(AGENTS, pressure=2.0), lambda programs: len(programs) / 5, 0.05, 30.0)
    assert len(AGENTS.programs(1, rate)) == pytest.approx(10, abs=1)


def test_tools_count_in_latency_and_not_in_token_latency() -> None:
    one = program(0.0, (100, 10, 0.0), (300, 30, 2.0))
    assert tool_s(one) == 2.0
    seen = figures([one], [6.0], COUNTS)
    assert (seen["latency_s"], seen["token_ms"]) == (6.0, 100.0)
    assert (seen["prefix_hits"], seen["preemptions"], seen["preemptions_reactive"]) == (0.25, 2, 1)


def test_ratios_compare_runs_of_one_seed() -> None:
    base = {0: {"latency_s": 6.0}, 2: {"latency_s": 30.0}, 1: {"latency_s": 8.0}}
    other = {1: {"latency_s": 4.0}, 0: {"latency_s": 2.0}, 3: {"latency_s": 1.0}}
    assert ratios(base, other, "latency_s") == [3.0, 2.0]
    assert (with_interval([]), with_interval([2.0])) == ("-", "2.00")
    assert with_interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"


def test_a_drift_of_the_machine_affects_all_policies_alike() -> None:
    names = ["a", "b", "c", "d", "e"]
    for first in (0, 2, 4):
        two = [in_turn(names, seed) for seed in (first, first + 1)]
        assert {sum(order.index(name) for order in two) for name in names} == {4}
    assert in_turn(names, 0) == names
    assert in_turn(names, 2) != names


def test_retaining_policies_are_compared_with_the_forgetful_one() -> None:
    assert bases(["fcfs", "program-plas", "program-plas-forgets", "program-plas-900"]) == [
        ("fcfs", "program-plas"),
        ("fcfs", "program-plas-forgets"),
        ("fcfs", "program-plas-900"),
        ("program-plas-forgets", "program-plas"),
        ("program-plas-forgets", "program-plas-900"),
    ]
    made = variants(("fcfs", "program-plas", "program-plas-forgets"), (900,))
    keeps = PRESETS["program-plas"]
    assert keeps.retention_milli > 0
    assert made == {
        "fcfs": PRESETS["fcfs"],
        "program-plas": keeps,
        "program-plas-forgets": replace(keeps, name="program-plas-forgets", retention_milli=0),
        "program-plas-900": replace(keeps, name="program-plas-900", retention_milli=900),
    }


def test_the_bars_pair_seeds_and_the_tables_show_both_times() -> None:
    def row(policy: str, seed: int, latency_s: float) -> dict[str, object]:
        real = figures([program(0.0, (100, 10, 0.0))], [latency_s], COUNTS) | {
            "unready": 0,
            "pressure": 2.0,
            "speed": 1.0,
        }
        return {"shape": "agents", "seed": seed, "policy": policy, "real": real, "virtual": real}

    rows = [row("fcfs", 0, 4.0), row("plas", 0, 2.0), row("plas", 1, 3.0), row("fcfs", 1, 9.0)]
    (bar,) = summarise({"rows": rows})
    assert (bar.name, bar.value, bar.runs, bar.verdict) == ("kv-agents-plas-over-fcfs", 2.5, 2, Verdict.NOT_SHOWN)
    each, against = tables({"rows": rows})
    assert list(each.columns[0].cells) == ["fcfs", "plas"]
    assert list(against.columns[1].cells) == ["2.50 ± 6.35 (2.50)"]


def test_tools_and_the_overhead_of_calls_take_virtual_time() -> None:
    cost, limits = CostModel(weights_us=1000.0), EngineLimits(8, block_size=32, num_blocks=240)
    alone = program(0.0, (100, 10, 0.0), (300, 30, 2.0))
    without_gaps = replace(alone, calls=tuple(structs.replace(c, gap_s=0.0) for c in alone.calls))
    (bare,), _ = simulate([without_gaps], PRESETS["fcfs"], cost, limits, 0.0)
    (late,), _ = simulate([alone], PRESETS["fcfs"], cost, limits, 0.5)
    assert bare is not None
    assert late is not None
    assert late.latency_s == pytest.approx(bare.latency_s + 2.0 + 2 * 0.5, abs=0.01)


def test_a_run_is_cut_off_at_its_limit_in_virtual_time_too() -> None:
    cost = CostModel(
        weights_us=0.0, kv_us_per_token=0.5, compute_us_per_token=55.0, attention_us_per_pair=0.09, base_us=6200.0
    )
    programs = coding_agents(0, 1.3, 19)
    limits = EngineLimits(8, block_size=32, num_blocks=240)
    results, _ = simulate(programs, PRESETS["fcfs"], cost, limits, 0.016, limit_s=30.0)
    assert None in results
    took = latencies_s(programs, results, 30.0)
    assert all(
        each.arrival_s + late == 30.0 if result is None else each.arrival_s + late <= 30.0
        for each, late, result in zip(programs, took, results, strict=True)
    )
