"""Trace files are read back as written, and invalid lines are refused with their number."""

from __future__ import annotations

import pytest
from agentserving_replay.traces.file import TraceError, read_trace
from agentserving_replay.workloads import generate
from support.trace_files import trace_of

A = b'{"program": "a", "name": "agent", "arrival_s": 5}'
A1 = b'{"program": "a", "call": "1", "prompt_tokens": 100, "output_tokens": 10}'


def call(**fields: str) -> bytes:
    fields_of_call = {"program": '"a"', "call": '"2"', "prompt_tokens": "200", "output_tokens": "10", **fields}
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in fields_of_call.items()) + "}").encode()


@pytest.mark.parametrize("workload", ["sharegpt", "bfcl", "lats", "map-reduce"])
def test_programs_are_read_back_as_written(workload: str) -> None:
    programs = generate(workload, 1, 2.0, 5)
    cluster, read = read_trace(trace_of(programs).splitlines())
    assert cluster is None
    first = programs[0].arrival_s
    assert [(p.program_id, p.name) for p in read] == [(p.program_id, p.name) for p in programs]
    assert [p.arrival_s for p in read] == pytest.approx([p.arrival_s - first for p in programs])
    assert [[c.parents for c in p.calls] for p in read] == [[c.parents for c in p.calls] for p in programs]
    assert [[c.prompt_tokens for c in p.calls] for p in read] == [[c.prompt_tokens for c in p.calls] for p in programs]


def test_a_sub_agent_is_a_thread_of_its_root() -> None:
    child = b'{"program": "a.sub", "parent": "a", "arrival_s": 7.5}'
    first = call(program='"a.sub"', call='"s1"', gap_s="1")
    then = call(program='"a.sub"', call='"s2"', after='["s1"]', extends='"s1"', shared_tokens="150")
    _, (program,) = read_trace([A, A1, child, first, then])
    assert [c.thread for c in program.calls] == ["", "a.sub", "a.sub"]
    assert [c.gap_s for c in program.calls] == [0, 3.5, 0]
    assert program.calls[2].parents == (1,)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "line 0: the file has no programs"),
        ([b"", b"  "], "line 2: the file has no programs"),
        ([b"{"], "line 1: Input data was truncated"),
        ([b"[1]"], "line 1: Expected `object`, got `array`"),
        ([A, A], "line 2: program 'a' already exists"),
        ([A], "line 1: program 'a' has no calls"),
        ([A1], "line 1: program: no program 'a' before this line"),
        ([A, A1, A1], "line 3: call '1' of 'a' already exists"),
        ([A, A1, call(after='["9"]')], "line 3: after: no call '9' of 'a' before this line"),
        ([A, A1, call(after='["2"]')], "line 3: after: no call '2' of 'a' before this line"),
        ([A, A1, call(extends='"9"')], "line 3: extends: no call '9' of 'a' before this line"),
        ([A, A1, call(extends='"1"', shared_tokens="111")], "line 3: shared_tokens: '1' has only 110 tokens"),
        ([A, A1, call(shared_tokens="200")], "line 3: shared_tokens: must be less than prompt_tokens, 200"),
        ([A, A1, call(gap_s="-1")], "line 3: gap_s: must be 0 to 31536000 seconds, got -1.0"),
        ([A, A1, call(prompt_tokens="0")], "line 3: prompt_tokens: must be 1 to 100000000, got 0"),
        ([A, A1, call(output_tokens="-5")], "line 3: output_tokens: must be 1 to 100000000, got -5"),
        ([A, A1, call(output_tokens='"x"')], "line 3: Expected `int`, got `str` - at `$.output_tokens`"),
        ([A, A1, call(text='"secret"')], "line 3: Object contains unknown field `text`"),
        ([b'{"program": "a", "arrival_s": -1}'], "line 1: arrival_s: must be 0 to 31536000 seconds, got -1.0"),
        ([A, A1, call(gap_s="1e12")], "line 3: gap_s: must be 0 to 31536000 seconds, got 1000000000000.0"),
        ([b'{"program": "b", "parent": "a", "arrival_s": 1}'], "line 1: parent: no program 'a' before this line"),
        ([A, b'{"program": "b", "parent": "a", "arrival_s": 1}'], "line 2: arrival_s: 1.0 is before its root's, 5.0"),
    ],
)
def test_an_invalid_line_is_refused_with_its_number(lines: list[bytes], error: str) -> None:
    with pytest.raises(TraceError) as refused:
        read_trace(lines)
    assert str(refused.value).startswith(error)
