"""Where a program id comes from."""

from __future__ import annotations

import json

import pytest
from agentserving_gateway.identity import Identity, clean, identify
from hypothesis import given
from hypothesis import strategies as st

OURS = "x-agentserving-program-id"


@pytest.mark.parametrize(
    ("headers", "body", "wanted"),
    [
        ({OURS: "p"}, {}, ("p", "", "agentserving")),
        ({OURS: "p", "x-agentserving-parent-program-id": "q"}, {}, ("p", "q", "agentserving")),
        ({OURS: "p", "x-dynamo-session-id": "d"}, {"program_id": "b"}, ("p", "", "agentserving")),
        ({"x-llm-d-inference-fairness-id": "f"}, {}, ("f", "", "llm-d")),
        ({"x-dynamo-session-id": "d", "x-dynamo-parent-session-id": "e"}, {}, ("d", "e", "dynamo")),
        ({"x-claude-code-session-id": "c"}, {}, ("c", "", "claude-code")),
        ({"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a"}, {}, ("c/a", "c", "claude-code")),
        (
            {
                "x-claude-code-session-id": "c",
                "x-claude-code-agent-id": "a",
                "x-claude-code-parent-agent-id": "b",
            },
            {},
            ("c/a", "c/b", "claude-code"),
        ),
        ({"session-id": "s"}, {}, ("s", "", "codex")),
        ({"x-session-id": "o", "x-parent-session-id": "r"}, {}, ("o", "r", "opencode")),
        ({"x-session-affinity": "o"}, {}, ("o", "", "opencode")),
        ({}, {"program_id": "b", "prompt_cache_key": "k"}, ("b", "", "body")),
        ({}, {"vllm_xargs": {"agentic_context": "x"}, "prompt_cache_key": "k"}, ("x", "", "agentic-context")),
        ({}, {"prompt_cache_key": "k"}, ("k", "", "prompt-cache-key")),
        ({}, {"messages": []}, ("", "", "none")),
        ({OURS: "  "}, {"program_id": 7}, ("", "", "none")),
    ],
)
def test_the_first_source_wins(headers: dict[str, str], body: object, wanted: tuple[str, str, str]) -> None:
    found = identify(headers, json.dumps(body).encode())
    assert (found.program_id, found.parent_program_id, found.source) == wanted


def test_the_last_call_of_a_dynamo_session_is_known() -> None:
    assert identify({"x-dynamo-session-id": "d", "x-dynamo-session-final": "true"}, b"").final


@given(st.dictionaries(st.sampled_from([OURS, "session-id"]), st.text()), st.binary(max_size=300))
def test_nothing_a_client_sends_is_an_error(headers: dict[str, str], body: bytes) -> None:
    found = identify(headers, b'{"program_id": ' + body)
    assert isinstance(found, Identity)
    assert len(found.program_id) <= 128


def test_an_odd_id_is_hashed_to_the_same_id_each_time() -> None:
    assert clean("ümlaut id") == clean("ümlaut id") != clean("ümlaut ie")
