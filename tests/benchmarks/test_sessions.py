"""Recorded coding-agent sessions as programs."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.paper.sessions import MAX_GAP_S, MAX_PROMPT, coding_agents, session, sessions


def row(depth: int, start_s: float, api_s: float, prompt: int, output: int, hit: int) -> dict[str, str]:
    return {
        "start_s": str(start_s), "depth": str(depth), "input_tokens": str(prompt), "output_tokens": str(output),
        "prefix_hit_tokens": str(hit), "api_s": str(api_s),
    }  # fmt: skip


def test_a_call_extends_its_predecessor_after_its_tool() -> None:
    first, then = session([row(0, 0, 7, 1000, 50, 0), row(0, 10, 5, 1500, 20, 992)])
    assert (first.parents, first.extends, first.shared_tokens) == ((), -1, 0)
    assert (then.parents, then.extends, then.shared_tokens, then.gap_s) == ((0,), 0, 992, 3)


def test_a_sub_agent_begins_after_its_caller_and_is_waited_for() -> None:
    calls = session(
        [
            row(0, 0, 5, 1000, 50, 0),
            row(1, 6, 2, 300, 20, 0),
            row(1, 9, 2, 400, 20, 288),
            row(0, 20, 5, 1500, 50, 992),
        ]
    )
    assert [call.parents for call in calls] == [(), (0,), (1,), (0, 2)]
    assert [call.extends for call in calls] == [-1, -1, 1, 0]
    assert [call.gap_s for call in calls] == [0, 1, 1, 9]
    assert [call.thread for call in calls] == ["0", "1", "1", "0"]


def test_nights_contexts_and_hits_are_cut_to_what_can_be() -> None:
    before, after = session([row(0, 0, 1, 900_000, 9_000, 0), row(0, 90_000, 1, 900_000, 10, 899_000)])
    assert (before.prompt_tokens, before.output_tokens) == (MAX_PROMPT, 4_000)
    assert (after.gap_s, after.shared_tokens) == (MAX_GAP_S, MAX_PROMPT - 1)


def test_the_file_is_what_the_literature_says_of_such_sessions() -> None:
    known = sessions()
    lengths = [len(calls) for calls in known]
    each = [call for calls in known for call in calls]
    assert len(known) == 346
    assert statistics.median(lengths) == pytest.approx(44, rel=0.1)
    assert statistics.median(call.prompt_tokens for call in each) == pytest.approx(100_000, rel=0.1)
    assert statistics.median(call.output_tokens for call in each) == pytest.approx(218, rel=0.05)
    again = [call for calls in known for call in calls[1:]]
    hits = sum(call.shared_tokens for call in again) / sum(call.prompt_tokens for call in again)
    assert hits == pytest.approx(0.96, abs=0.04)


def test_each_seed_draws_its_own_order_and_the_same_again() -> None:
    one, other = (coding_agents(seed, 0.1, 20) for seed in (1, 2))
    assert one == coding_agents(1, 0.1, 20)
    assert [program.calls for program in one] != [program.calls for program in other]
