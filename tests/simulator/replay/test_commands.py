"""`agentserving replay` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from agentserving_cli.main import main
from agentserving_replay.workloads import generate
from click.testing import CliRunner
from support.trace_files import trace_of


def output_of(*args: str) -> str:
    result = CliRunner().invoke(main, ["replay", *args])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*args: str) -> str:
    result = CliRunner().invoke(main, ["replay", *args])
    assert result.exit_code != 0
    assert not isinstance(result.exception, KeyError | TypeError | AttributeError)
    return result.output


def test_a_trace_is_run_under_each_policy(tmp_path: Path) -> None:
    file = tmp_path / "tuesday.jsonl"
    file.write_bytes(trace_of(generate("bfcl", 1, 1.0, 20)))
    output = output_of(str(file), "--policy", "fcfs", "--policy", "plas", "--engines", "2", "--gpu", "h100-80gb")
    assert "20 programs on 2 x h100-80gb, llama-3.1-8b" in output
    assert all(word in output for word in ("fcfs", "plas", "token latency, mean (ms)", "cached prompt tokens"))


def test_generated_programs_need_no_file() -> None:
    assert "12 programs on 1 x a100-80gb" in output_of("--workload", "sharegpt", "--programs", "12", "--rate", "0.5")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ([], "give either a trace file or --workload"),
        (["--workload", "sharegpt", "--gpu", "abacus"], "'abacus' is not one of"),
        (["--workload", "sharegpt", "--model", "gpt-9"], "'gpt-9' is not one of"),
        (["--workload", "sharegpt", "--policy", "lifo"], "'lifo' is not one of"),
        (["no-such-file"], "does not exist"),
    ],
)
def test_invalid_arguments_are_refused_by_name(args: list[str], error: str) -> None:
    assert error in refused(*args)


def test_an_invalid_file_is_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"program": "a", "arrival_s": 0}\n{"program": "a", "call": "1"}\n')
    assert f"{file}: line 2: Object missing required field" in refused(str(file))


def test_a_call_too_large_for_the_engine_is_refused_with_its_size(tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    file.write_text(
        '{"program": "a", "arrival_s": 0}\n'
        '{"program": "a", "call": "1", "prompt_tokens": 9000000, "output_tokens": 1}\n'
    )
    assert "needs 562501 blocks of KV, the engine has" in refused(str(file))


def test_a_closed_loop_says_how_many_agents_an_engine_carries() -> None:
    args = ("--workload", "bfcl", "--programs", "40", "--policy", "fcfs", "--slo-ttft", "20", "--duration", "120")
    output = output_of(*args, "--concurrency", "4", "--concurrency", "2")
    assert "40 programs in a closed loop on 1 x a100-80gb, llama-3.1-8b, 120 s" in output
    assert "fcfs: 4 agents per engine at p90 TTFT <= 20 s, or more: the largest one tried meets the SLO" in output


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--concurrency", "50"], "--concurrency 50: only 10 programs"),
        (["--concurrency", "2", "--slo-ttft", "0"], "0.0 is not in the range 0<x<=1000000.0"),
        (["--slo-ttft", "5"], "--slo-ttft is for a closed loop: give --concurrency, too"),
        (["--cap-think-s", "5"], "--cap-think-s is for a closed loop"),
    ],
)
def test_an_impossible_closed_loop_is_refused(args: list[str], error: str) -> None:
    assert error in refused("--workload", "bfcl", "--programs", "10", *args)
