"""The simulated engine's flags: what they make of it, and what is refused before it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentserving_simulator import __main__ as process
from agentserving_simulator.answers.script import InvalidScriptError
from agentserving_simulator.conduct_options import conduct_of
from agentserving_simulator.http_front import Conduct

NEEDED = ["--listen", "127.0.0.1:0", "--engine-id", "e0"]


def arguments(*flags: str) -> Any:
    return process._arguments([*NEEDED, *flags])


def test_without_flags_an_engine_answers_as_by_default() -> None:
    assert conduct_of(arguments()) == Conduct()


def test_the_context_is_an_agents_or_what_the_blocks_hold() -> None:
    assert arguments().max_model_len == 131_072
    assert arguments("--num-blocks=100").max_model_len == 1600
    assert arguments("--num-blocks=100", "--max-model-len=8192").max_model_len == 8192


def test_flags_say_how_it_answers(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"turns": [{"text": "Hello."}]}')
    found = conduct_of(
        arguments("--turns=3", "--script", str(script), "--fault", "429@0.5,cut", "--fault", "latency=1")
    )
    assert (found.behaviour.turns, found.behaviour.scripts[0].turns[0].text) == (3, "Hello.")
    assert [fault.kind for fault in found.faults] == ["429", "cut", "latency"]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--turns=-1", "'-1' is no whole number from 0"),
        ("--parallel-calls=0", "'0' is no whole number from 1"),
        ("--fault=never", "'never' is no fault"),
        ("--max-model-len=0", "must be positive"),
    ],
)
def test_a_wrong_flag_is_refused_with_the_reason(flag: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(flag)
    assert reason in capsys.readouterr().err


def test_a_wrong_script_is_refused_with_file_and_place(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"turns": [{"say": ""}]}')
    with pytest.raises(InvalidScriptError, match=r"script\.json: no script: .*`say`"):
        conduct_of(arguments("--script", str(script)))
