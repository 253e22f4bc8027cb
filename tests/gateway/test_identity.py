"""Where a program id comes from, and what a body may say."""

from __future__ import annotations

import json

import pytest
from agentserving.contract.ids import ProgramId
from agentserving.contract.program_headers import may_name_programs, read_ignored, read_program_headers
from agentserving.programs import headers as client_headers
from agentserving_gateway.body import Body, read_body
from agentserving_gateway.envoy.names import CREDENTIALS, RESERVED, TICKET
from agentserving_gateway.errors import HttpError
from agentserving_gateway.identity import Identity, clean, from_body, from_head, headers_of, sources
from hypothesis import given
from hypothesis import strategies as st

OURS = "x-agentserving-program-id"
PARENT = "x-agentserving-parent-program-id"


def identify(headers: dict[str, str], body: Body, program: ProgramId = ProgramId("")) -> Identity:
    """As the picker: the head first, then the body."""
    return from_head(headers, program) or from_body(body)


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
        ({"session-id": "s", "thread-id": "s"}, {}, ("s", "", "codex")),
        ({"session-id": "s", "thread-id": "t"}, {}, ("s/t", "s", "codex")),
        ({"session-id": "s", "thread-id": "t", "x-codex-parent-thread-id": "s"}, {}, ("s/t", "s", "codex")),
        ({"session-id": "s", "thread-id": "u", "x-codex-parent-thread-id": "t"}, {}, ("s/u", "s/t", "codex")),
        ({"session-id": "s", "thread-id": "s", PARENT: "w"}, {}, ("s", "w", "codex")),
        ({"session-id": "s", "thread-id": "t", PARENT: "w"}, {}, ("s/t", "s", "codex")),
        ({"x-claude-code-session-id": "c", PARENT: "w"}, {}, ("c", "w", "claude-code")),
        ({"x-claude-code-session-id": "c", PARENT: "c"}, {}, ("c", "", "claude-code")),
        ({PARENT: "w"}, {}, ("", "", "none")),
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
    found = identify(headers, read_body(json.dumps(body).encode()))
    assert (found.program_id, found.parent_program_id, found.source) == wanted


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({"x-run": "r", "session-id": "s"}, ("r", "", "configured")),
        ({"x-run": "r", "x-parent-run": "q"}, ("r", "q", "configured")),
        ({"x-parent-run": "q"}, None),
        ({OURS: "p", "x-run": "r"}, ("p", "", "agentserving")),
        ({"session-id": "s", "x-session-id": "o"}, ("s", "", "codex")),
        ({"x-session-id": "o", "x-parent-session-id": "q"}, None),
    ],
)
def test_a_cluster_adds_headers_before_those_of_agents_and_ignores_some(
    headers: dict[str, str], wanted: tuple[str, str, str] | None
) -> None:
    chosen = sources(read_program_headers("X-Run:x-parent-run, x-other"), read_ignored("X-Session-Id"))
    found = from_head(headers, sources_=chosen)
    assert (found and (found.program_id, found.parent_program_id, found.source)) == wanted


def test_envoy_sends_the_picker_what_is_looked_for_and_nothing_of_what_is_ignored() -> None:
    chosen = headers_of(sources(read_program_headers("x-run:x-parent-run"), read_ignored("x-session-affinity")))
    assert {"x-run", "x-parent-run", OURS, "session-id"} <= set(chosen)
    assert "x-session-affinity" not in chosen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("authorization", "credential"),
        ("x-run:X-Api-Key", "credential"),
        ("x-agentserving-tenant", "meaning of its own"),
        ("x-request-id", "meaning of its own"),
        ("x run", "expected NAME"),
        ("x-run:", "expected NAME"),
        ("x-run,X-Run:y", "twice"),
    ],
)
def test_credentials_and_headers_with_a_meaning_name_no_programs(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_program_headers(text)


def test_what_gateways_replace_in_requests_names_no_programs() -> None:
    assert not [name for name in (*RESERVED, *CREDENTIALS) if may_name_programs(name) and name != TICKET]


def test_only_headers_of_known_agents_are_ignored() -> None:
    with pytest.raises(ValueError, match="these do: x-llm-d-inference-fairness-id"):
        read_ignored("x-run")


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, ("run", "", "")),
        ({"session-id": "s"}, ("run", "", "s")),
        ({"session-id": "s", "x-agentserving-thread-id": "t"}, ("run", "", "t")),
        ({"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a"}, ("run/c/a", "run", "")),
        ({"x-session-id": "o", "x-parent-session-id": "r"}, ("run/o", "run", "")),
        ({OURS: "opened"}, ("opened", "run", "")),
        ({OURS: "opened", "x-agentserving-parent-program-id": "q"}, ("opened", "q", "")),
        ({OURS: "run"}, ("run", "", "")),
        ({PARENT: "w"}, ("run", "w", "")),
        ({"session-id": "s", PARENT: "w"}, ("run", "w", "s")),
        ({"session-id": "s", "thread-id": "t", PARENT: "w"}, ("run/s/t", "run", "")),
    ],
)
def test_the_program_of_the_url_is_that_of_sessions_and_the_parent_of_what_is_opened_in_it(
    headers: dict[str, str], wanted: tuple[str, str, str]
) -> None:
    found = identify(headers, Body(), ProgramId("run"))
    assert (found.program_id, found.parent_program_id, found.thread_id) == wanted


def test_a_sub_agent_of_codex_is_named_after_its_kind() -> None:
    headers = {"session-id": "s", client_headers.PROGRAM_NAME: "mine", "x-openai-subagent": "review"}
    assert identify({**headers, "thread-id": "t"}, Body()).name == "review"
    assert identify({**headers, "thread-id": "s"}, Body()).name == "mine"


def test_a_program_of_the_url_that_is_too_long_is_hashed() -> None:
    assert len(identify({}, Body(), ProgramId("x" * 4000)).program_id) < 128


def test_the_last_call_of_a_dynamo_session_is_known() -> None:
    assert identify({"x-dynamo-session-id": "d", "x-dynamo-session-final": "true"}, Body()).final
    assert identify({OURS: "p", client_headers.FINAL: "true"}, Body()).final
    assert not identify({OURS: "p", client_headers.FINAL: "false"}, Body()).final


@given(st.dictionaries(st.sampled_from([OURS, "session-id"]), st.text()), st.binary(max_size=300))
def test_nothing_a_client_sends_is_an_error(headers: dict[str, str], body: bytes) -> None:
    try:
        read = read_body(b'{"program_id": ' + body)
    except HttpError:
        read = Body()
    found = identify(headers, read)
    assert isinstance(found, Identity)
    assert len(found.program_id) <= 128


def test_an_odd_id_is_hashed_to_the_same_id_each_time() -> None:
    assert clean("ümlaut id") == clean("ümlaut id") != clean("ümlaut ie")


@pytest.mark.parametrize("size", [10_000, 900_000, 1_100_000, 4_000_000])
def test_an_identity_is_found_in_a_body_of_any_size(size: int) -> None:
    body = {"messages": [{"role": "user", "content": "x" * size}], "prompt_cache_key": "long-run-1"}
    assert identify({}, read_body(json.dumps(body).encode())).program_id == "long-run-1"


@pytest.mark.parametrize(
    "name", ["a" * 100 + "-nightly", "x" * 127 + "A", "x" * 127 + "B", "ü" * 64, "ü" * 63 + "xx", "é" * 90, "short"]
)
def test_a_name_is_cut_as_the_client_library_cuts_it(name: str) -> None:
    found = identify({OURS: "p", client_headers.PROGRAM_NAME: name}, Body())
    assert found.name == client_headers.short_name(name)
    assert len(found.name.encode()) <= client_headers.MAX_NAME_BYTES


def test_an_id_is_hashed_as_the_client_library_hashes_it() -> None:
    for text in ("plain", "ümlaut id", "x" * 128, "x" * 129):
        assert clean(text) == client_headers.thread_id(text)


def test_two_long_threads_stay_two() -> None:
    one, other = (
        identify({OURS: "p", client_headers.THREAD_ID: "x" * 200 + end}, Body()).thread_id for end in ("A", "B")
    )
    assert one != other
    assert len(one.encode()) <= 128


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "m", "messages": []}', "m"),
        (b'{"tools": [{"model": "inner"}], "model": "outer"}', "outer"),
        (b'{"metadata": {"model": "inner"}}', ""),
        (b'{"messages": [{"content": "say \\"model\\": \\"x\\""}]}', ""),
        (b'{"model": 7}', ""),
        (b'{"model": "a", "model": "b"}', "b"),
        (b'{"mod\\u0065l": "escaped"}', "escaped"),
        (b'\xef\xbb\xbf{"model": "after a byte order mark"}', "after a byte order mark"),
        (b'{"model": "m", "temperature": NaN}', "m"),
        (b'{"model": "m", "stop": "\\ud800"}', "m"),
        (b'{"model": "\\ud800"}', "?"),
        (b"[]", ""),
        (b"not json", ""),
        (b"", ""),
    ],
)
def test_only_the_top_level_names_the_model(body: bytes, model: str) -> None:
    assert read_body(body).model_name == model


@pytest.mark.parametrize("value", ['"x"', "null", "7", '{"a": 1}'])
@pytest.mark.parametrize("form", ['{"session_id": %s}', '{"vllm_xargs": {"session\\u005fid": %s}, "x": NaN}'])
def test_a_session_id_is_refused_in_every_spelling(form: str, value: str) -> None:
    with pytest.raises(HttpError, match="session_id") as caught:
        read_body((form % value).encode())
    assert caught.value.code == "reserved_field"
