"""An answer that comes back in the next prompt is the same tokens, whatever API the client speaks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving_simulator.answers.conversation import Turn, attachment, content_text, turns_with_calls
from agentserving_simulator.answers.plan import Part, PartKind, of_parts, of_words
from agentserving_simulator.dialects import chat, messages, responses
from agentserving_simulator.tokens import tokenize, word
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)
TEXT = st.text(max_size=60).map(str.strip)


@given(st.text(max_size=200))
def test_the_tokens_of_a_text_are_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


@given(st.text(max_size=100), st.integers(0, 1 << 128), st.integers(1, 60), st.text(max_size=50))
def test_placeholder_words_that_come_back_are_the_same_tokens(question: str, seed: int, length: int, more: str) -> None:
    history = [{"role": "user", "content": question}]
    words = [word(seed, index) for index in range(length)]
    (prompt,) = chat.parse({"messages": history}, LIMIT).prompts
    before = [*prompt, *words]
    answer = {"role": "assistant", "content": "".join(words)}
    (after,) = chat.parse({"messages": [*history, answer, {"role": "user", "content": more}]}, LIMIT).prompts
    assert after[: len(before)] == before


@given(TEXT, TEXT, st.lists(ARGUMENTS, max_size=3))
def test_text_and_calls_that_come_back_are_the_same_tokens_in_every_api(
    question: str, text: str, arguments: list[dict[str, Any]]
) -> None:
    parts = [Part(PartKind.TEXT, text)] if text else []
    plan = of_parts([*parts, *(Part(PartKind.CALL, json.dumps(each, ensure_ascii=False), "f") for each in arguments)])
    if not plan.tokens:
        return
    shown = ["".join(piece.text for piece in plan.pieces if piece.part == number) for number in range(len(plan.parts))]
    assert shown == [part.text for part in plan.parts]

    def check(prompts: list[list[list[str]]]) -> None:
        before = [*prompts[0][0], *plan.tokens]
        assert prompts[1][0][: len(before)] == before

    user: dict[str, Any] = {"role": "user", "content": question}
    # Clients re-spell arguments, and name ids that the prompt does not show.
    functions = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "f", "arguments": json.dumps(each)}}
        for n, each in enumerate(arguments)
    ]
    back: list[Any] = [{"role": "assistant", "content": text or None, "tool_calls": functions, "refusal": None}]
    check([chat.parse({"messages": each}, LIMIT).prompts for each in ([user], [user, *back])])
    uses = [{"type": "tool_use", "id": f"{n}", "name": "f", "input": each} for n, each in enumerate(arguments)]
    back = [{"role": "assistant", "content": [*([{"type": "text", "text": text}] if text else []), *uses]}]
    check([messages.parse({"messages": each, "max_tokens": 1}, LIMIT).prompts for each in ([user], [user, *back])])
    items = [
        {"type": "function_call", "call_id": f"{n}", "name": "f", "arguments": json.dumps(each)}
        for n, each in enumerate(arguments)
    ]
    content = [{"type": "output_text", "text": text, "annotations": []}]
    back = [*([{"type": "message", "role": "assistant", "content": content}] if text else []), *items]
    check([responses.parse({"input": each}, LIMIT).prompts for each in ([user], [user, *back])])


@given(st.text("ab ", max_size=40), st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_is_shown_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    plan = of_parts([Part(PartKind.TEXT, text), Part(PartKind.CALL, "{}", "f")], stop)
    shown = "".join(piece.text for piece in plan.pieces if plan.parts[piece.part].kind is PartKind.TEXT)
    places = [text.index(each) for each in stop if each in text]
    assert shown == (text[: min(places)] if places else text)
    assert plan.calls_tools == (not places)
    assert plan.ends_after == len(plan.tokens) == len(plan.pieces)


def test_placeholder_words_end_at_a_stop_text_or_go_on() -> None:
    plan = of_words(None, ["4"], seed=0, most=100)
    assert (plan.stop, plan.ends_after) == ("4", 5)
    assert of_words(None, ["never"], seed=0, most=100).ends_after is None
    assert of_words(7, [], seed=0, most=100).ends_after == 7


@pytest.mark.parametrize(
    ("roles", "count"),
    [
        ("u", 0),
        ("u c t c t", 2),
        # Agents add a user's message beside results.
        ("u c t u c t u", 2),
        ("u c t a u", 0),
        ("s a u c t", 1),
        ("u c c t", 2),
    ],
)
def test_turns_with_calls_are_counted_from_the_last_answer(roles: str, count: int) -> None:
    turns = {"u": Turn("user", ""), "a": Turn("assistant", ""), "t": Turn("tool", ""), "s": Turn("system", "")}
    made = {**turns, "c": messages_call()}
    assert turns_with_calls(made[each] for each in roles.split()) == count


def messages_call() -> Turn:
    (_, turn) = messages._turns(
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]},
            ]
        }
    )
    return turn


def test_an_image_counts_as_one_word_and_not_as_its_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    assert len(tokenize(content_text([{"type": "text", "text": "look"}, image]))) < 10
    assert attachment(image) == attachment(dict(image)) != attachment({**image, "detail": "low"})
