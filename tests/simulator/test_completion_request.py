"""What the simulated engine reads out of a request."""

from __future__ import annotations

import pytest
from agentserving_simulator.completion_request import BadRequestError, parse
from agentserving_simulator.tokens import render, tokenize, word
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(max_size=200))
def test_the_tokens_of_a_text_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


@given(st.text(max_size=100), st.integers(0, 1 << 128), st.integers(1, 60), st.text(max_size=50))
def test_an_answer_sent_back_is_the_same_tokens(question: str, seed: int, length: int, more: str) -> None:
    history = [{"role": "user", "content": question}]
    words = [word(seed, index) for index in range(length)]
    before = [*tokenize(render(history)), *words]
    answer = {"role": "assistant", "content": "".join(words)}
    assert tokenize(render([*history, answer, {"role": "user", "content": more}]))[: len(before)] == before


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("abcd efgh", [["abcd", " efgh"]]),
        ([1, 2], [["1", "2"]]),
        (["ab", "cd"], [["ab"], ["cd"]]),
        ([[1], [2]], [["1"], ["2"]]),
    ],
)
def test_a_prompt_may_be_text_or_token_ids_or_several(prompt: object, tokens: list[list[str]]) -> None:
    assert parse({"prompt": prompt}, "completions", "tiny", 100).prompts == tokens


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ([], "chat", ""),
        ({"messages": "hello"}, "chat", "messages"),
        ({"messages": []}, "chat", "messages"),
        ({"messages": [1]}, "chat", "messages"),
        ({"prompt": ""}, "completions", "prompt"),
        ({"prompt": [[]]}, "completions", "prompt"),
        ({"prompt": [1.5]}, "completions", "prompt"),
        ({"prompt": "x " * 200}, "completions", "prompt"),
        ({"prompt": "x", "max_tokens": -1}, "completions", "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "completions", "max_tokens"),
        ({"prompt": "x", "n": 1000}, "completions", "n"),
        ({"prompt": "x", "model": "other"}, "completions", "model"),
    ],
)
def test_a_bad_body_is_refused_by_the_field_that_is_wrong(body: object, kind: str, param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse(body, kind, "tiny", 100)
    assert refused.value.param == param
