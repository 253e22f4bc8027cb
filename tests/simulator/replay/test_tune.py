"""`agentserving tune` on the command line: it finds a gain where there is one, and none where there is none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from agentserving.contract.ids import ProgramId
from agentserving.contract.policy import PLAS, to_dict
from agentserving.v1 import types_pb2
from agentserving_cli.main import main
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_replay.traces.file import RecordingLine
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate
from click.testing import CliRunner
from google.protobuf import json_format
from support.trace_files import trace_of

pytestmark = pytest.mark.timeout(300)


def trace(path: Path, programs: list[Program], *head: RecordingLine) -> Path:
    path.write_bytes(trace_of(programs, *head))
    return path


def run(*args: str) -> str:
    result = CliRunner().invoke(main, ["tune", *args], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    return result.output


def crowd(count: int) -> list[Program]:
    """Long programs in the way of short ones: few slots, much to gain over FCFS."""
    programs = []
    for number in range(count):
        turns, output = (12, 400) if number % 4 == 0 else (2, 40)
        calls = tuple(
            Call(
                prompt_tokens=64 * (turn + 1),
                output_tokens=output,
                parents=(turn - 1,) if turn else (),
                extends=turn - 1,
                shared_tokens=64 * turn,
            )
            for turn in range(turns)
        )
        programs.append(Program(ProgramId(f"p{number}"), "long" if turns > 2 else "short", number * 2.5, calls))
    return programs


FEW = ("--max-num-seqs", "4", "--most", "12")


def test_a_gain_is_proposed_with_its_interval_the_losers_and_the_policy(tmp_path: Path) -> None:
    file, out = trace(tmp_path / "t.jsonl", crowd(600)), tmp_path / "tuned.json"
    output = run(str(file), "--against", "fcfs", *FEW, "--out", str(out))
    assert re.search(r"It pays: program latency, mean \(s\) falls by \d+\.\d% \(95 %: \d+\.\d% to \d+\.\d%\)", output)
    for word in (
        "smallest tenth",
        "largest tenth",
        "class short",
        "class long",
        "token latency, p99 (ms)",
        "scheduling:",
    ):
        assert word in output
    assert f"agentserving policy set {out}" in output
    policy = json_format.ParseDict(json.loads(out.read_text()), types_pb2.Policy())
    assert policy.decision_interval_steps == 1
    assert len(policy.levels) > 1
    assert output == run(str(file), "--against", "fcfs", *FEW, "--out", str(out))


def test_no_change_pays_where_no_call_waits(tmp_path: Path) -> None:
    file, out = trace(tmp_path / "t.jsonl", generate("bfcl", 1, 0.05, 60)), tmp_path / "tuned.json"
    assert "No change pays" in run(str(file), "--against", "atlas", "--most", "10", "--out", str(out))
    assert not out.exists()


def test_the_recorded_policy_is_the_baseline(tmp_path: Path) -> None:
    policy = replace(PLAS, name="ours", beta_milli=7000)
    head = RecordingLine(
        recording="2026-11-24T09:00:00Z",
        policy=to_dict(policy),
        balancer=Balancer.LEAST_USED,
        engines=2,
        max_num_seqs=4,
    )
    output = run(str(trace(tmp_path / "t.jsonl", crowd(60), head)), "--most", "3")
    assert "60 programs of t.jsonl on 2 x a100-80gb" in output
    assert "ours (current): account: sum; 8 levels" in output
    assert "beta 7;" in output


def test_a_search_that_exceeds_its_budget_says_so(tmp_path: Path) -> None:
    file = trace(tmp_path / "t.jsonl", generate("lats", 1, 0.5, 40))
    assert "the budget was spent" in run(str(file), "--against", "fcfs", "--budget", "1", "--most", "1000")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((), "39 programs are too few to tell a gain from noise: at least 40"),
        (("--against", "lifo"), "--against lifo: neither a preset (auto, fcfs, "),
        (("--goal", "joy"), "'joy' is not one of"),
        (("--budget", "0"), "0.0 is not in the range"),
    ],
)
def test_invalid_arguments_and_short_traces_are_refused(tmp_path: Path, args: tuple[str, ...], error: str) -> None:
    file = trace(tmp_path / "t.jsonl", crowd(39 if not args else 40))
    result = CliRunner().invoke(main, ["tune", str(file), *args])
    assert result.exit_code != 0
    assert error in result.output


def test_an_invalid_policy_file_is_refused(tmp_path: Path) -> None:
    file, bad = trace(tmp_path / "t.jsonl", crowd(40)), tmp_path / "bad.json"
    for text, error in (
        ("[1]", "bad.json"),
        ('{"levelz": 1}', "levelz"),
        ('{"name": "x", "accounting": "ACCOUNTING_SUM"}', ""),
    ):
        bad.write_text(text)
        result = CliRunner().invoke(main, ["tune", str(file), "--against", str(bad)])
        assert result.exit_code == 1
        assert f"--against {bad}" in result.output
        assert error in result.output
