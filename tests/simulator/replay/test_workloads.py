"""Generated programs have the moments of the workloads they stand for."""

from __future__ import annotations

import random
import statistics

import pytest
from agentserving_replay.traces.trace import Call
from agentserving_replay.workloads import SHAPES, WORKLOADS, generate


def draw(shape: str, count: int) -> list[list[Call]]:
    return [SHAPES[shape](random.Random(f"{shape}-{seed}")) for seed in range(count)]


# Calls per program: mean, median, 90th percentile; per call: new tokens, output tokens. The means are the paper's.
@pytest.mark.parametrize(
    ("shape", "count", "calls", "median", "p90", "new", "output"),
    [
        ("sharegpt", 4000, 6.6, 3, 15, 256, 277),
        ("bfcl", 4000, 10.7, 10, 14, 735, 34.1),
        ("lats", 1200, 159.7, 55, 600, 467.2, 72.6),
    ],
)
def test_programs_have_the_papers_counts(
    shape: str, count: int, calls: float, median: int, p90: int, new: float, output: float
) -> None:
    programs = draw(shape, count)
    lengths = sorted(len(program) for program in programs)
    each = [call for program in programs for call in program]
    assert statistics.fmean(lengths) == pytest.approx(calls, rel=0.06)
    assert lengths[count // 2] == pytest.approx(median, rel=0.2)
    assert lengths[int(0.9 * count)] == pytest.approx(p90, rel=0.1)
    assert statistics.fmean(c.prompt_tokens - c.shared_tokens for c in each) == pytest.approx(new, rel=0.05)
    assert statistics.fmean(c.output_tokens for c in each) == pytest.approx(output, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_refer_to_earlier_calls_and_repeat_at_most_their_context(shape: str) -> None:
    for program in draw(shape, 50):
        for index, call in enumerate(program):
            assert all(parent < index for parent in call.parents)
            assert call.extends < index
            assert 0 <= call.shared_tokens < call.prompt_tokens
            if call.extends >= 0:
                base = program[call.extends]
                assert call.shared_tokens <= base.prompt_tokens + base.output_tokens
                assert call.extends in call.parents or shape == "lats"


def test_lats_forks_five_wide_and_joins() -> None:
    (program,) = draw("lats", 1)
    assert [call.parents for call in program[:5]] == [()] * 5
    assert [call.parents for call in program[5:10]] == [(0, 1, 2, 3, 4)] * 5


def test_map_reduce_ends_in_one_call_that_waits_for_all_maps() -> None:
    (program,) = draw("map-reduce", 1)
    assert program[-1].parents == tuple(range(len(program) - 1))


def test_a_rate_changes_only_arrivals() -> None:
    slow, fast = (generate("mixed", 5, rate, 300) for rate in (1.0, 2.0))
    assert [p.calls for p in slow] == [p.calls for p in fast]
    assert [p.arrival_s for p in slow] == pytest.approx([2 * p.arrival_s for p in fast])
    assert fast[-1].arrival_s == pytest.approx(150, rel=0.2)


def test_mixed_is_a_third_of_each() -> None:
    names = [program.name for program in generate("mixed", 1, 1.0, 900)]
    assert {names.count(name) for name in WORKLOADS["mixed"]} <= set(range(250, 350))


def test_an_unknown_workload_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no workload 'x'; known are sharegpt, bfcl"):
        generate("x", 1, 1.0, 1)
