"""Programs are named after their client where it sends no name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agentserving.programs.headers import MAX_NAME_BYTES
from agentserving_gateway.body import read_body
from agentserving_gateway.content import reading
from agentserving_gateway.program_names import INSTRUCTIONS_BYTES, from_headers
from gateway.gateway_rig import answer_json, rig, value
from hypothesis import given
from hypothesis import strategies as st
from support.reading import read_whole

ASKED = {"role": "user", "content": "Fix the test."}
SYSTEM = {"role": "system", "content": "You are a careful engineer."}


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"user-agent": "claude-cli/2.0.14 (external, cli)"}, "claude-cli"),
        ({"user-agent": "QwenCode/0.2.1 (linux; x64)"}, "QwenCode"),
        ({"user-agent": "my.agent"}, "my.agent"),
        ({"user-agent": "OpenAI/Python 2.1.0"}, ""),
        ({"user-agent": "Python/3.11 aiohttp/3.13"}, ""),
        ({"user-agent": "node"}, ""),
        ({"user-agent": "OpenAI/Python 2.1.0", "x-title": "Aider"}, "Aider"),
        ({"x-title": " "}, ""),
        ({"user-agent": "(nothing)"}, ""),
        ({"user-agent": "x" * 65}, ""),
        ({}, ""),
    ],
)
def test_a_client_is_named_by_its_title_or_its_product_but_not_by_a_library(headers: dict[str, str], name: str) -> None:
    assert from_headers(headers) == name


@given(st.fixed_dictionaries({}, optional={"user-agent": st.text(), "x-title": st.text()}))
def test_any_header_gives_a_name_that_the_control_plane_takes(headers: dict[str, str]) -> None:
    assert len(from_headers(headers).encode()) <= MAX_NAME_BYTES


def name_of(**body: Any) -> str:
    """By the body alone."""
    found = read_whole(reading(read_body(json.dumps(body).encode()), b"secret of one gateway"))
    assert found is not None
    return found.name


def test_programs_with_the_same_instructions_have_one_name() -> None:
    name = name_of(messages=[SYSTEM, ASKED])
    assert name.startswith("prompt-")
    assert name_of(messages=[SYSTEM, {"role": "user", "content": "Another question."}]) == name
    # Of a gateway with another secret.
    other = read_whole(reading(read_body(json.dumps({"messages": [SYSTEM, ASKED]}).encode()), b"another"))
    assert other is not None
    assert other.name == name


def test_what_follows_the_beginning_of_long_instructions_does_not_change_the_name() -> None:
    begin = "You are a coding agent. " * (INSTRUCTIONS_BYTES // 24 + 1)
    names = {name_of(system=f"{begin} Today is day {day}.", messages=[ASKED]) for day in range(3)}
    assert len(names) == 1


@pytest.mark.parametrize("message", [SYSTEM, {"content": "You are brief.", "role": "developer"}])
def test_instructions_are_found_in_each_dialect(message: dict[str, str]) -> None:
    text = message["content"]
    for body in (
        {"messages": [message, ASKED]},
        {"input": [message, ASKED]},
        {"instructions": text, "input": [ASKED]},
        {"system": [{"type": "text", "text": text}], "messages": [ASKED]},
    ):
        assert name_of(**body).startswith("prompt-"), body


@pytest.mark.parametrize(
    "body", [{"messages": [ASKED, SYSTEM]}, {"messages": [ASKED], "system": None}, {"messages": [ASKED], "system": ""}]
)
def test_without_instructions_there_is_no_name(body: dict[str, Any]) -> None:
    assert name_of(**body) == ""


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ("", "prompt-"),
        ("user-agent: OpenAI/Python 2\r\n", "prompt-"),
        ("user-agent: claude-cli/2\r\n", "claude-cli"),
        ("user-agent: claude-cli/2\r\nx-claude-code-session-id: s1\r\n", "claude-cli"),
        ("user-agent: claude-cli/2\r\nx-title: Triage\r\n", "Triage"),
        (
            "user-agent: claude-cli/2\r\nx-agentserving-program-id: p1\r\nx-agentserving-program-name: mine\r\n",
            "mine",
        ),
    ],
)
async def test_programs_have_the_best_name_that_a_request_gives(headers: str, name: str) -> None:
    body = json.dumps({"messages": [SYSTEM, ASKED]}).encode()
    async with rig(answer_json) as made:
        answer = await made.post("/v1/chat/completions", body, headers=headers)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        program = value(answer, "x-agentserving-program-id")
        (row,) = [row for key, row in made.plane.table.rows.items() if key.program_id == program]
    assert row.name.startswith(name)
    assert row.name == name or name == "prompt-"
