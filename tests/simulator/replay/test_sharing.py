"""Shared prompt tokens are estimated from token counts by the rules in sharing.py."""

from __future__ import annotations

import pytest
from agentserving.contract.ids import CallId, EngineId, ProgramId
from agentserving_replay.traces.lineage import Lineage, RecordedCall
from agentserving_replay.traces.sharing import bases, disproved, of_system, shared, system_tokens
from hypothesis import given, settings
from hypothesis import strategies as st


def ran(n: int, prompt: int, output: int = 10, cached: int = 0, thread: str = "", engine: str = "e1") -> RecordedCall:
    """The n-th of sequential calls."""
    return RecordedCall(
        call_id=CallId(f"c{n}"), program_id=ProgramId("p"), thread_id=thread, engine_id=EngineId(engine), parents=(),
        admit_us=100 * n, end_us=100 * n + 50, prompt_tokens=prompt, cached_tokens=cached, output_tokens=output,
    )  # fmt: skip


def estimated(*calls: RecordedCall) -> list[tuple[int, int]]:
    """(base, shared tokens) of each call."""
    base_of = bases(calls, Lineage(calls, {}, {}))
    alike = disproved(calls, base_of)
    return [
        (base, shared(call, calls[base] if base >= 0 else None, alike=call.program_id in alike))
        for call, base in zip(calls, base_of, strict=True)
    ]


def test_the_next_turn_repeats_the_whole_context_even_if_it_was_evicted() -> None:
    assert estimated(ran(0, 100, 20), ran(1, 300, 20), ran(2, 500, 20, cached=64)) == [(-1, 0), (0, 120), (1, 320)]


def test_a_prompt_without_its_bases_answer_repeats_the_prompt() -> None:
    assert estimated(ran(0, 100, 400), ran(1, 200))[1] == (0, 100)
    assert estimated(ran(0, 100, 400), ran(1, 200, cached=144))[1] == (0, 144)


def test_a_compacted_context_shares_its_cached_tokens() -> None:
    assert estimated(ran(0, 5000, 20), ran(1, 900, cached=512))[1] == (0, 512)


def test_prompts_that_are_merely_alike_share_their_cached_tokens() -> None:
    calls = [ran(n, 1000 + n, cached=128, thread="t") for n in range(5)]
    assert [tokens for _, tokens in estimated(*calls)] == [128] * 5
    # One prompt that found its base confirms the others, whose bases were evicted.
    confirmed = [*calls, ran(5, 2000, cached=992, thread="t")]
    assert [tokens for _, tokens in estimated(*confirmed)][1:] == [1000, 1001, 1002, 1003, 1014]


def test_without_any_hit_nothing_is_disproved() -> None:
    assert [tokens for _, tokens in estimated(*[ran(n, 1000 + 100 * n) for n in range(5)])] == [
        0,
        1010,
        1110,
        1210,
        1310,
    ]


def test_another_engine_proves_nothing() -> None:
    calls = [ran(n, 1000 + 100 * n, cached=16, engine=f"e{n}") for n in range(5)]
    assert [tokens for _, tokens in estimated(*calls)][1:] == [1010, 1110, 1210, 1310]


@pytest.mark.parametrize(
    ("found", "length"), [([], 0), ([0, 0], 0), ([512], 512), ([512, 0, 512, 480], 512), ([32, 48], 48)]
)
def test_the_system_prompt_of_a_class_is_the_most_frequent_count(found: list[int], length: int) -> None:
    assert system_tokens(found) == length


def test_a_call_of_a_named_class_begins_with_the_system_prompt_even_if_uncached() -> None:
    assert of_system(0, 600, 512, named=True) == 512
    assert of_system(0, 600, 512, named=False) == 0
    assert of_system(520, 600, 512, named=False) == 512
    assert of_system(0, 512, 512, named=True) == 0


TOKENS = st.integers(1, 3000)


@settings(deadline=None)
@given(
    st.lists(st.tuples(TOKENS, TOKENS, st.integers(0, 4000), st.sampled_from("ab"), st.sampled_from("ef")), max_size=12)
)
def test_every_estimate_is_valid_in_a_trace(drawn: list[tuple[int, int, int, str, str]]) -> None:
    calls = [ran(n, p, o, cached, t, e) for n, (p, o, cached, t, e) in enumerate(drawn)]
    for at, (base, tokens) in enumerate(estimated(*calls)):
        assert base < at
        assert 0 <= tokens < calls[at].prompt_tokens
        if base >= 0:
            assert tokens <= calls[base].context_tokens
            assert tokens >= min(calls[at].cached_tokens, calls[at].prompt_tokens - 1, calls[base].context_tokens)
