"""Traces of others as traces of ours: WEKA's sessions, Mooncake's requests, OpenTelemetry's spans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from agentserving_cli.main import main
from agentserving_replay.traces.file import read_trace
from agentserving_replay.traces.trace import Program
from click.testing import CliRunner


def imported(*args: str) -> list[Program]:
    result = CliRunner().invoke(main, ["import", *args])
    assert result.exit_code == 0, result.output
    return read_trace(result.stdout_bytes.splitlines(keepends=True))[1]


def refused(*args: str) -> str:
    result = CliRunner().invoke(main, ["import", *args])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    return result.output


# -- weka ------------------------------------------------------------------------------------------------------------


def request(t: float, tokens: int, hashes: list[int], **fields: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": tokens, "out": 20, "hash_ids": hashes, "api_time": 2.0, "stop": "", **fields}


def weka(tmp_path: Path, *requests: dict[str, Any], name: str = "s1.json", **fields: Any) -> Path:
    folder = tmp_path / "weka"
    folder.mkdir(exist_ok=True)
    session = {"id": "s1", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": requests, **fields}
    (folder / name).write_text(json.dumps(session))
    return folder


def test_a_session_of_weka_repeats_what_its_hashes_say(tmp_path: Path) -> None:
    folder = weka(tmp_path, request(0, 130, [1, 2, 3]), request(5, 200, [1, 2, 4, 5]), request(9, 300, [1, 2, 4, 5, 6]))
    (program,) = imported("weka", str(folder))
    assert (program.program_id, program.name) == ("s1", "coding-agent")
    assert [(call.extends, call.shared_tokens) for call in program.calls] == [(-1, 0), (0, 128), (1, 200)]
    assert [call.parents for call in program.calls] == [(), (0,), (1,)]
    # 5 - 2 and 9 - 7 seconds between the end of one request and the next.
    assert [call.gap_s for call in program.calls] == [0, 3, 2]
    assert [call.prompt_tokens for call in program.calls] == [130, 200, 300]


def test_sub_agents_of_weka_share_the_hashes_of_their_caller_who_waits_for_them(tmp_path: Path) -> None:
    agent = {
        "t": 3.0, "type": "subagent", "agent_id": "agent_001", "subagent_type": "Explore", "duration_ms": 9000,
        "requests": [request(0, 100, [1, 9]), request(3, 150, [1, 9, 10])],
    }  # fmt: skip
    (program,) = imported("weka", str(weka(tmp_path, request(0, 130, [1, 2, 3]), agent, request(9, 200, [1, 2, 3, 4]))))
    first, explore, goes_on, last = program.calls
    assert (explore.parents, explore.gap_s, explore.shared_tokens) == ((0,), 1.0, 64)
    assert (goes_on.parents, goes_on.extends, goes_on.shared_tokens) == ((1,), 1, 100)
    assert (last.parents, last.extends, last.shared_tokens) == ((0, 2), 0, 130)
    assert explore.thread == goes_on.thread != first.thread


def test_a_request_of_weka_without_an_end_is_imported_only_with_an_assumed_speed(tmp_path: Path) -> None:
    folder = weka(tmp_path, {**request(0, 130, [1, 2, 3]), "api_time": None}, request(5, 200, [1, 2, 4, 5]))
    assert "--tokens-per-s assumes a decoding speed" in refused("weka", str(folder))
    (program,) = imported("weka", str(folder), "--tokens-per-s", "10")
    assert program.calls[1].gap_s == 3.0


def test_sessions_of_weka_that_no_engine_could_run_are_left_out(tmp_path: Path) -> None:
    weka(tmp_path, request(0, 130, [1, 2, 3]), name="a.json")
    folder = weka(tmp_path, request(0, 64, [1]), name="b.json", id="s2")
    programs = imported("weka", str(folder), "--max-context", "149")
    assert [(each.program_id, each.arrival_s) for each in programs] == [("s2", 0)]
    assert len(imported("weka", str(folder), "--max-context", "150")) == 2


def test_sessions_of_weka_begin_one_after_the_other(tmp_path: Path) -> None:
    weka(tmp_path, request(0, 130, [1, 2, 3]), name="a.json")
    lines = [{"id": f"s{number}", "block_size": 64, "requests": [request(0, 64, [1])]} for number in (2, 3)]
    folder = tmp_path / "weka"
    (folder / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    programs = imported("weka", str(folder), "--start-every", "7.5")
    assert [(each.program_id, each.arrival_s) for each in programs] == [("s1", 0), ("s2", 7.5), ("s3", 15)]


@pytest.mark.parametrize(
    ("requests", "error"),
    [
        ([request(0, 130, [1, 2, 3]), {**request(1, 64, [1]), "api_time": None}],
         "s1.json, requests[1]: api_time: missing, so it is unknown when the call ended"),
        ([request(-1, 130, [1, 2, 3])], "requests[0]: t: must be 0 to 31536000 seconds, got -1"),
        ([request(1e12, 130, [1, 2, 3])], "requests[0]: t: must be 0 to 31536000 seconds, got 1000000000000"),
        ([request(0, 130, [1, 2, 3], api_time=-2)], "api_time: must be 0"),
        ([request(0, 0, [])], "in: must be 1 to 100000000, got 0"),
        ([request(0, 64, [1, 2, 3])], "hash_ids: 3 for 64 tokens, which are 1 blocks"),
        ([request(0, 192, [1, 2, 3]), request(5, 192, [1, 3, 4])],
         "requests[1]: hash_ids[1]: block 3 follows block 1 here, but followed block 2 as hash_ids[2] before"),
        ([{"t": 0, "type": "subagent", "requests": []}], "requests: no request in it"),
    ],
)  # fmt: skip
def test_an_impossible_session_is_refused_with_its_place(
    tmp_path: Path, requests: list[dict[str, Any]], error: str
) -> None:
    assert error in refused("weka", str(weka(tmp_path, *requests)))


def test_a_folder_without_sessions_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    assert "no .json or .jsonl file in it" in refused("weka", str(tmp_path))
    (tmp_path / "broken.jsonl").write_text('{"id": "a", "block_size": 64, "requests": []}\n{"id": \n')
    assert "broken.jsonl, line 2: Input data was truncated" in refused(
        "weka", str(_only_last(tmp_path / "broken.jsonl"))
    )
    weka(tmp_path, request(0, 64, [1]), name="a.json")
    assert "b.json: id: unique, 1 to 128" in refused("weka", str(weka(tmp_path, request(0, 64, [1]), name="b.json")))


def _only_last(path: Path) -> Path:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("\n" + lines[-1])
    return path.parent


# -- mooncake --------------------------------------------------------------------------------------------------------


def row(timestamp: float, tokens: int, output: int, hashes: list[int]) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": hashes}


def lines_of(tmp_path: Path, *lines: dict[str, Any]) -> str:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_requests_of_mooncake_that_continue_a_prompt_are_one_program(tmp_path: Path) -> None:
    file = lines_of(
        tmp_path,
        row(0, 1100, 100, [0, 1, 2]),
        row(1000, 700, 50, [0, 7]),
        row(8000, 1600, 100, [0, 1, 3, 4]),
        row(9000, 1600, 10, [0, 1, 9, 5]),
    )
    conversation, other, branch = imported("mooncake", file)
    first, second = conversation.calls
    # The answer took 100 / 50 s; the third block was not full, so the next prompt has another hash there.
    assert (second.parents, second.extends, second.shared_tokens, second.gap_s) == ((0,), 0, 1024, 6.0)
    assert [each.arrival_s for each in (conversation, other, branch)] == [0, 1, 9]
    assert (other.name, other.calls[0].shared_tokens, first.shared_tokens) == ("prefix-0", 512, 0)
    # It repeats the first prompt, but that has been continued already.
    assert (branch.name, branch.calls[0].shared_tokens) == ("prefix-1", 1024)


def test_the_assumed_speed_decides_how_long_a_request_of_mooncake_took(tmp_path: Path) -> None:
    file = lines_of(tmp_path, row(0, 512, 100, [0]), row(3000, 1024, 1, [0, 1]))
    assert imported("mooncake", file, "--tokens-per-s", "100")[0].calls[1].gap_s == 2.0
    assert imported("mooncake", file, "--tokens-per-s", "10")[0].calls[1].gap_s == 0.0


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([row(5000, 512, 1, [0]), row(4000, 512, 1, [1])], "line 2: timestamp: 4000 is before the line above"),
        ([row(-1, 512, 1, [0])], "line 1: timestamp: must be 0"),
        ([row(0, 512, 1, [0]), row(0, 1024, 1, [5, 0])], "line 2: hash_ids[1]: block 0 follows block 5 here"),
        ([row(0, 0, 1, [])], "line 1: input_length: must be 1"),
        ([{"timestamp": 0}], "line 1: Object missing required field"),
    ],
)
def test_an_impossible_line_of_mooncake_is_refused(tmp_path: Path, lines: list[dict[str, Any]], error: str) -> None:
    assert error in refused("mooncake", lines_of(tmp_path, *lines))


# -- otel ------------------------------------------------------------------------------------------------------------


def span(number: str, begin_s: float, end_s: float, parent: str = "", **attributes: Any) -> dict[str, Any]:
    values = [
        {"key": "gen_ai." + key.replace("__", "."), "value": {"intValue": str(value)} if isinstance(value, int) else
         {"stringValue": value}}
        for key, value in attributes.items()
    ]  # fmt: skip
    nanos = {"startTimeUnixNano": str(int(begin_s * 1e9)), "endTimeUnixNano": str(int(end_s * 1e9))}
    return {"traceId": "t1", "spanId": number, "parentSpanId": parent, "name": "x", "attributes": values, **nanos}


def chat(number: str, begin_s: float, end_s: float, tokens: int, parent: str = "", **more: Any) -> dict[str, Any]:
    counts = {"usage__input_tokens": tokens, "usage__output_tokens": 10}
    return span(number, begin_s, end_s, parent, operation__name="chat", **counts, **more)


def export(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "crawler"}}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def test_spans_become_programs_by_conversation_or_trace(tmp_path: Path) -> None:
    file = lines_of(
        tmp_path,
        export(chat("a", 100, 102, 500), span("tool", 102, 104, operation__name="execute_tool")),
        export(chat("b", 104, 105, 700), chat("c", 101, 103, 80, conversation__id="other")),
    )
    first, other = imported("otel", file)
    assert [(call.prompt_tokens, call.parents, call.gap_s) for call in first.calls] == [(500, (), 0), (700, (0,), 2)]
    # The prompt has grown by more than the answer: it repeats the context before.
    assert (first.calls[1].extends, first.calls[1].shared_tokens) == (0, 510)
    assert (first.name, other.name, other.arrival_s) == ("crawler", "crawler", 1.0)


def test_agents_within_agents_are_sub_agents(tmp_path: Path) -> None:
    agents = [
        span("outer", 99, 120, operation__name="invoke_agent", agent__name="planner"),
        span("inner", 103, 110, "outer", operation__name="invoke_agent", agent__name="reader"),
    ]
    calls = [chat("a", 100, 102, 500, "outer"), chat("b", 104, 106, 90, "inner"), chat("c", 111, 112, 800, "outer")]
    (program,) = imported("otel", lines_of(tmp_path, export(*calls, *agents)))
    assert program.name == "planner"
    assert [call.parents for call in program.calls] == [(), (0,), (0, 1)]
    assert program.calls[1].thread != program.calls[0].thread == program.calls[2].thread


def test_cache_reads_of_first_calls_are_the_system_prompt(tmp_path: Path) -> None:
    reads = {"usage__cache_read__input_tokens": 128}
    spans = [chat(f"s{number}", number, number + 1, 300, conversation__id=f"c{number}", **reads) for number in (1, 2)]
    assert [program.calls[0].shared_tokens for program in imported("otel", lines_of(tmp_path, export(*spans)))] == [
        128, 128
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ([chat("a", 100, 0, 5)], "line 1, span 1: endTimeUnixNano: missing"),
        ([chat("a", 100, 102, 5), chat("b", 100, 99, 5)], "line 1, span 2: endTimeUnixNano: 99000000000 is before"),
        ([span("a", 1, 2, operation__name="chat")], "line 1, span 1: gen_ai.usage.input_tokens: missing"),
        ([chat("a", 1, 4e7, 5)], "must be 0 to 31536000 seconds"),
        ([span("a", 1, 2)], "no span of a GenAI call in it"),
    ],
)
def test_an_impossible_span_is_refused_with_its_place(tmp_path: Path, spans: list[dict[str, Any]], error: str) -> None:
    assert error in refused("otel", lines_of(tmp_path, export(*spans)))
