"""Which calls without an id are taken for one run."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from agentserving.contract.ids import Tenant
from agentserving_gateway import content, picker
from agentserving_gateway.body import read_body
from agentserving_gateway.content import LONG_TURN_BYTES, MAX_MESSAGES, STEP_BYTES, Runs, reading
from gateway.gateway_rig import answer_json, rig, value
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.reading import program_of, read_whole

TENANT = Tenant("t")
Item = dict[str, Any]
# What an agent sends: (messages so far, number of the call) -> what it and the engine add to them.
Grow = Callable[[int], list[Item]]


def counted() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"c-{next(numbers)}"


def ask(runs: Runs, items: list[Item], *, tenant: Tenant = TENANT, field: str = "messages", **others: Any) -> str:
    """Sends one call; returns its program."""
    return program_of(runs, tenant, read_body(json.dumps({"model": "m", field: items, **others}).encode()))


def said(role: str, text: str) -> Item:
    return {"role": role, "content": text}


def tool_turn(call_id: str = "") -> list[Item]:
    """A tool call of Chat Completions with its result."""
    call_id = call_id or f"chatcmpl-tool-{uuid.uuid4().hex}"
    call = {"id": call_id, "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "README.md"},
    ]


SYSTEM, QUESTION = said("system", "You are an agent."), said("user", "Fix the test.")
# Qwen Code and aider put assistant turns of their own in front of each run.
QWEN = [SYSTEM, said("user", "This is Qwen Code."), said("assistant", "Got it. Thanks for the context!"), QUESTION]
AIDER = [
    SYSTEM,
    said("user", "Change get_factorial() to use math.factorial"),
    said("assistant", "To make this change we need to modify `mathweb/flask/app.py` to: " + "1. Import math. " * 40),
    said("user", "I switched to a new code base."),
    said("assistant", "Ok."),
    QUESTION,
]


def chat(begin: list[Item], calls: int) -> list[list[Item]]:
    """The messages of each call of a run with tools (mini-swe-agent, pi, Qwen Code)."""
    found = [begin]
    while len(found) < calls:
        found.append([*found[-1], *tool_turn()])
    return found


def text_chat(begin: list[Item], calls: int, answer: Callable[[int], str]) -> list[list[Item]]:
    """A run whose tools are text (aider's edits, older Cline)."""
    found = [begin]
    for number in range(1, calls):
        found.append([*found[-1], said("assistant", answer(number)), said("user", f"result {number}")])
    return found


def cline(calls: int) -> list[list[Item]]:
    """Content in parts."""
    parts = [{"type": "text", "text": "<task>x</task>"}, {"type": "text", "text": "<environment_details>"}]
    return chat([SYSTEM, {"role": "user", "content": parts}], calls)


@pytest.mark.parametrize(
    "calls",
    [
        chat([SYSTEM, QUESTION], 5),
        chat(QWEN, 5),
        cline(5),
        text_chat([SYSTEM, QUESTION], 5, lambda number: f"<execute_command> {number} " + "x" * 300),
        text_chat(AIDER, 5, lambda number: f"SEARCH {number}"),
    ],
    ids=["mini-swe-agent and pi", "qwen", "cline", "text", "examples in the prompt"],
)
def test_all_calls_of_a_run_but_the_first_are_one_program(calls: list[list[Item]]) -> None:
    runs = Runs(counted())
    first, *others = [ask(runs, call) for call in calls]
    assert first == ""
    assert set(others) == {"c-0"}


@pytest.mark.parametrize("begin", [[SYSTEM, QUESTION], QWEN, AIDER], ids=["plain", "qwen", "aider"])
def test_runs_that_begin_alike_stay_apart(begin: list[Item]) -> None:
    runs = Runs(counted())
    one, other, single = (chat(begin, calls) for calls in (4, 4, 1))
    programs = [
        (ask(runs, first), ask(runs, second)) for first, second in zip([*one, *single], [*other, *single], strict=False)
    ]
    assert programs[0] == ("", "")
    assert len({first for first, _ in programs[1:4]}) == len({second for _, second in programs[1:4]}) == 1
    assert programs[1][0] != programs[1][1]


def test_greetings_that_are_answered_alike_stay_apart() -> None:
    runs = Runs(counted())
    greeting = [said("user", "hi")]
    answered = [*greeting, said("assistant", "Hello! How can I help you today?")]
    # This gateway has seen the first call of one of them only.
    assert ask(runs, greeting) == ""
    assert ask(runs, [*answered, said("user", "a poem")]) == "c-0"
    assert ask(runs, [*answered, said("user", "a recipe")]) == ""


def test_a_question_aside_belongs_to_the_run() -> None:
    runs = Runs(counted())
    first, second, third = chat(QWEN, 3)
    aside = said("user", "Should the model go on?")
    assert [ask(runs, call) for call in (first, [*second, aside], second, [*third, aside], third)] == [
        "", "c-0", "c-0", "c-0", "c-0",
    ]  # fmt: skip


def test_a_call_that_is_sent_again_stays_in_its_run() -> None:
    runs = Runs(counted())
    for short_answer in (chat([SYSTEM, QUESTION], 3), text_chat([SYSTEM], 3, lambda number: f"{uuid.uuid4()}")):
        begin, second, third = short_answer
        assert ask(runs, begin) == ""
        programs = {ask(runs, call) for call in (second, second, third, third)}
        assert len(programs) == 1
        assert "" not in programs


def test_a_responses_input_and_messages_are_read_as_well() -> None:
    runs = Runs(counted())
    items = [said("user", "x")]
    assert ask(runs, items, field="input", instructions="i") == ""
    call_id = f"call_{uuid.uuid4().hex}"
    items += [
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": call_id, "output": "y"},
    ]
    assert ask(runs, items, field="input", instructions="i") == "c-0"
    assert ask(runs, items, field="input", instructions="others") == ""

    def marked(text: str) -> Item:
        return {"role": "user", "content": [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]}

    use = {"type": "tool_use", "id": "toolu_01A09q90qw90lq917835lq9", "name": "f", "input": {}}
    begin: list[Item] = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert ask(runs, [marked("x")], system="s") == ""
    grown = [*begin, {"role": "assistant", "content": [use]}, marked("y")]
    assert ask(runs, grown, system="s") == "c-1"


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x"},
        {"input": "x"},
        {"messages": []},
        {"messages": "x"},
        {"messages": {"role": "user"}},
        {"messages": None},
        {"input": [{"role": "user"}], "previous_response_id": "resp_1"},
        {"messages": [{}] * (MAX_MESSAGES + 1)},
    ],
)
def test_what_is_no_whole_conversation_is_not_grouped(body: Item) -> None:
    assert read_whole(reading(read_body(json.dumps(body).encode()), b"")) is None


@pytest.mark.parametrize("messages", [[1, "x", None, [], {}], [{"role": 7, "type": []}, {"role": "assistant"}], [[[]]]])
def test_odd_messages_are_no_error(messages: list[Any]) -> None:
    runs = Runs(counted())
    for _ in range(2):
        ask(runs, messages)


def test_tenants_do_not_meet() -> None:
    runs = Runs(counted())
    first, second, _ = chat([SYSTEM, QUESTION], 3)
    assert ask(runs, first) == ""
    assert ask(runs, second, tenant=Tenant("other")) == ""
    assert ask(runs, second) == "c-0"


def test_memory_is_bounded_and_a_busy_tenant_costs_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAX_CALLS_OF_TENANT", 8)
    monkeypatch.setattr(content, "MAX_CALLS", 20)
    runs = Runs(counted())
    first, second = chat([SYSTEM, QUESTION], 2)
    ask(runs, first)
    for number in range(30):
        ask(runs, [said("user", f"{number}")], tenant=Tenant("busy"))
        assert len(runs) <= 20
    assert ask(runs, second) == "c-0"
    for number in range(30):
        ask(runs, [said("user", f"{number}")], tenant=Tenant(f"tenant {number}"))
        assert len(runs) <= 20


def test_no_text_is_kept() -> None:
    runs = Runs()
    for call in chat([SYSTEM, said("user", "my password is tulip")], 3):
        ask(runs, call)
    assert "tulip" not in repr(runs._tenants)
    assert {type(key) for calls in runs._tenants.values() for key in calls} == {bytes}


# A run of the property test: how many calls it makes, and what its answers look like.
_ANSWERS = st.sampled_from(["tool", "long", "short"])


@given(st.data())
def test_no_program_ever_has_calls_of_two_runs_and_no_run_more_than_one(data: st.DataObject) -> None:
    """Runs with the same prompt, interleaved in any order; answers of one kind may be equal in all runs."""
    runs = Runs(counted())
    begin = data.draw(st.sampled_from([[SYSTEM, QUESTION], QWEN, AIDER]))
    # At temperature 0, text is equal while the messages before it are.
    equal = data.draw(st.booleans())
    count = data.draw(st.integers(2, 5))
    made: dict[int, list[Item]] = {}
    programs: dict[int, set[str]] = {}
    for run in data.draw(st.lists(st.integers(0, count - 1), max_size=30)):
        if run not in made:
            made[run] = list(begin)
            assert ask(runs, made[run]) == ""
            continue
        kind = data.draw(_ANSWERS)
        if kind == "tool":
            made[run] += tool_turn()
        else:
            text = "y" * (LONG_TURN_BYTES if kind == "long" else 1) + ("" if equal else f"{run}")
            made[run] += [said("assistant", text), said("user", f"result for {run}")]
        programs.setdefault(run, set()).add(ask(runs, made[run]))
    assert all(len(found) == 1 and "" not in found for found in programs.values())
    assert len({next(iter(found)) for found in programs.values()}) == len(programs)


@pytest.mark.asyncio
async def test_calls_that_say_nothing_become_one_program_at_the_control_plane() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("agentserving_gateway_identities_total", {"source": "content"}) or 0.0

    async with rig(answer_json) as made:
        before = count()
        programs = []
        for call in chat([SYSTEM, QUESTION], 4):
            answer = await made.post("/v1/chat/completions", json.dumps({"messages": call}).encode())
            assert answer.startswith(b"HTTP/1.1 200 OK")
            programs.append(value(answer, "x-agentserving-program-id"))
        assert len(set(programs)) == 2
        assert len(set(programs[1:])) == 1
        assert programs[1].startswith("c-")
        assert count() - before == 3
        assert sum(key.program_id == programs[1] for key in made.plane.table.rows) == 1


@pytest.mark.parametrize("messages", [1, 64])
def test_reading_a_long_body_pauses_often(messages: int) -> None:
    """So that others are not delayed: a step digests STEP_BYTES, wherever the bytes are."""
    text = "x" * (8 * STEP_BYTES // messages)
    body = read_body(json.dumps({"messages": [said("user", text)] * messages}).encode())
    assert sum(1 for _ in reading(body, b"")) >= 8
    assert read_whole(reading(body, b"")) is not None


@given(
    st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=12), st.integers(0, 3 * STEP_BYTES)
)
def test_the_size_of_a_message_changes_nothing_about_its_turns(roles: list[str], size: int) -> None:
    items = [said(role, "x" * size if index == 0 else str(index)) for index, role in enumerate(roles)]
    conversation = read_whole(reading(read_body(json.dumps({"messages": items}).encode()), b"s"))
    assert conversation is not None
    turns = sum(role == "assistant" and roles[index - 1 : index] != ["assistant"] for index, role in enumerate(roles))
    assert len(conversation.turns) == turns


async def test_others_are_served_while_a_long_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picker, "TURN_S", 0.0)
    turns_of_others = 0

    async def others() -> None:
        nonlocal turns_of_others
        while True:
            turns_of_others += 1
            await asyncio.sleep(0)

    body = read_body(json.dumps({"messages": [said("user", "x" * 8 * STEP_BYTES)]}).encode())
    serving = asyncio.create_task(others())
    try:
        conversation = await picker.in_turns(reading(body, b""), time.perf_counter())
    finally:
        serving.cancel()
    assert conversation == read_whole(reading(body, b""))
    assert turns_of_others >= 8, "between any two steps"
