"""A closed loop: N programs open at a time, and the figures of their calls at an SLO."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from agentserving.contract.ids import ProgramId
from agentserving.contract.policy import FCFS, PROGRAM_PLAS
from agentserving_replay.closed_loop import Loop, LoopFigures, agents_per_engine, endless, loop_figures, run_loop
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.results import CallResult
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits

A100 = cost_model("a100-80gb", "llama-3.1-8b")
LOOP = Loop(concurrency=8, slo_ttft_s=1.0, duration_s=600.0, warmup_s=100.0)
SECOND = 1_000_000


def spec(**limits: int) -> ClusterSpec:
    return ClusterSpec(policy=replace(FCFS, decision_interval_steps=8), cost=A100, limits=EngineLimits(**limits))


def call(arrived_s: float, first_s: float, ended_s: float, output: int = 10, **more: int) -> CallResult:
    instants = (int(each * SECOND) for each in (arrived_s, first_s, ended_s))
    values = {"prompt_tokens": 100, "gpu_tokens": 0, "host_tokens": 0, **more}
    return CallResult(
        **dict(zip(("arrived_us", "first_token_us", "ended_us"), instants, strict=True)), output_tokens=output, **values
    )


def test_as_many_programs_are_open_as_asked_until_none_is_left() -> None:
    programs = generate("bfcl", 0, 1.0, 12)
    cluster = VirtualCluster(spec())
    cluster.keep_open(iter(programs), 5, ramp_s=0.0)
    while cluster.next_s < float("inf"):
        # The two events of one instant, an end and the next start, happen in one step.
        cluster.run(cluster.next_s + 2e-6)
        assert cluster.open_programs == min(5, 12 - len(cluster.results))
    assert {result.program_id for result in cluster.results} == {program.program_id for program in programs}
    assert len(cluster.calls) == sum(len(program.calls) for program in programs)


def test_programs_come_round_again_with_new_ids_and_capped_think_times() -> None:
    calls = (Call(prompt_tokens=10, output_tokens=1), Call(prompt_tokens=20, output_tokens=1, parents=(0,), gap_s=90.0))
    programs = [Program(ProgramId(name), "kind", 0.0, calls) for name in ("a", "b")]
    rounds = list(islice(endless(programs, 10.0), 6))
    assert len({program.program_id for program in rounds}) == 6
    assert {program.calls[1].gap_s for program in rounds} == {10.0}
    assert next(endless(programs)).calls[1].gap_s == 90.0


def test_goodput_counts_only_calls_whose_first_token_came_in_time() -> None:
    ended = [
        call(50, 60, 90, output=1000),  # in the warm-up
        call(200, 200.5, 210, output=50, gpu_tokens=60, host_tokens=20),
        call(200, 209, 220, output=70, prompt_tokens=300),
    ]
    waits = call(400, 0, 0, output=0)
    figures = loop_figures(LOOP, 1, ended, [waits], programs=1)
    assert (figures.tokens_per_s, figures.goodput) == (120 / 500, 50 / 500)
    assert (figures.gpu_hits, figures.host_hits) == (60 / 400, 20 / 400)
    # The call that waits since second 400 counts with the 200 s that it has waited.
    assert (figures.ttft_p50_s, figures.ttft_p99_s, figures.in_time) == (9.0, 200.0, False)


def test_a_loop_in_which_nothing_ends_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no call ended in 500 s after the warm-up: run longer"):
        loop_figures(LOOP, 1, [call(0, 1, 2)], [], programs=0)


def test_more_agents_wait_longer_and_the_largest_number_in_time_is_found() -> None:
    programs = generate("bfcl", 0, 1.0, 120)
    short = replace(LOOP, duration_s=200.0, warmup_s=50.0)
    runs = [run_loop(spec(), programs, replace(short, concurrency=count)) for count in (4, 16, 96)]
    assert [run.in_time for run in runs] == [True, True, False]
    assert runs[0].tokens_per_s < runs[1].tokens_per_s
    assert runs[2].goodput < runs[2].tokens_per_s
    assert agents_per_engine(runs) == 16
    # A larger number that happens to be in time does not count.
    assert agents_per_engine([runs[2], replace(runs[1], concurrency=200)]) == 0


def test_a_concurrency_that_the_trace_cannot_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="--concurrency 8: only 3 programs"):
        run_loop(spec(), generate("bfcl", 0, 1.0, 3), LOOP)


def test_contexts_that_left_the_gpu_are_found_in_host_memory() -> None:
    programs = generate("sharegpt", 0, 1.0, 60)
    small = {"num_blocks": 2000}

    def hits(host_blocks: int) -> LoopFigures:
        limits = EngineLimits(host_blocks=host_blocks, **small)
        plas = replace(PROGRAM_PLAS, decision_interval_steps=8)
        loop = replace(LOOP, concurrency=24, duration_s=300.0)
        return run_loop(ClusterSpec(policy=plas, cost=A100, limits=limits), programs, loop)

    without, behind = hits(0), hits(200_000)
    assert without.host_hits == 0
    assert behind.host_hits > 0.05
    assert behind.gpu_hits + behind.host_hits > without.gpu_hits
