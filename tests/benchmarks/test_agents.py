"""The closed loop of coding agents on a real engine: its programs and its bars."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import pytest
from agentserving_cli.local.layout import BUILT_IN_CONTEXT, TINY
from agentserving_replay.closed_loop import LoopFigures

from benchmarks.agents import LONGEST, SCALE, by_policy, sessions, summarise, table
from benchmarks.bars import Verdict
from benchmarks.closed_loop import lines
from benchmarks.paper.sessions import coding_agents

POLICIES = ("fcfs", "auto")


def run(seed: int, policy: str, goodput: float, concurrency: int = 6) -> dict[str, Any]:
    figures = LoopFigures(
        concurrency=concurrency, engines=1, tokens_per_s=10 + goodput, goodput=goodput, ttft_p50_s=1.0, ttft_p90_s=2.0,
        ttft_p99_s=3.0, gpu_hits=0.5, host_hits=0.0, calls=9, programs=1, in_time=False,
    )  # fmt: skip
    return {"seed": seed, "policy": policy, "chosen": policy, "figures": asdict(figures)}


def test_scaled_sessions_keep_their_calls_and_fit_into_the_model() -> None:
    for full, small in zip(coding_agents(3, 1.0, 60), sessions(3), strict=True):
        assert [call.parents for call in small.calls] == [call.parents for call in full.calls]
        for index, call in enumerate(small.calls):
            assert call.prompt_tokens <= LONGEST
            assert call.prompt_tokens + call.output_tokens < BUILT_IN_CONTEXT[TINY]
            assert call.gap_s == pytest.approx(full.calls[index].gap_s * SCALE.seconds)
            if call.extends >= 0:
                known = small.calls[call.extends]
                assert 0 < call.shared_tokens <= known.prompt_tokens + known.output_tokens
            assert call.shared_tokens < call.prompt_tokens


def test_goodput_is_judged_against_a_baseline_that_may_be_zero() -> None:
    rows = [run(seed, policy, 30.0 + seed if policy == "auto" else 0.0) for seed in range(4) for policy in POLICIES]
    goodput, tokens = summarise({"rows": rows})
    assert (goodput.name, goodput.value, goodput.verdict) == ("agents-6-goodput-above-1.3x", 31.5, Verdict.MET)
    assert (tokens.name, tokens.verdict) == ("agents-6-tokens", Verdict.MET)


def test_less_than_the_goal_is_missed_although_it_is_more_than_fcfs() -> None:
    rows = [
        run(seed, policy, 12.0 + seed if policy == "auto" else 10.0 + seed) for seed in range(4) for policy in POLICIES
    ]
    assert summarise({"rows": rows})[0].verdict is Verdict.MISSED


def test_concurrencies_are_compared_apart() -> None:
    rows = [run(seed, policy, 5.0, open_now) for open_now in (6, 16) for seed in range(2) for policy in POLICIES]
    assert {open_now: {name: len(each) for name, each in runs.items()} for open_now, runs in
            by_policy({"rows": rows}).items()} == {6: {"fcfs": 2, "auto": 2}, 16: {"fcfs": 2, "auto": 2}}  # fmt: skip
    assert table({"rows": rows, "alone_s": 0.5}).row_count == 4


async def test_an_event_may_contain_characters_that_end_lines_of_text() -> None:
    """The tiny model answers with any bytes, and JSON escapes neither U+0085 nor U+2028."""

    async def parts() -> AsyncIterator[bytes]:
        data = 'data: {"text": "a\x85b\u2028c"}\n\ndata: [DONE]\n\n'.encode()
        for at in range(0, len(data), 7):
            yield data[at : at + 7]

    found = [line.decode() async for line in lines(parts())]
    assert found == ['data: {"text": "a\x85b\u2028c"}', "", "data: [DONE]", "", ""]
