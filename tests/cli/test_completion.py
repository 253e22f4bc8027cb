"""Shell completion, as docs/start.md switches it on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def completed(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    environment = {
        **os.environ, "_AGENTSERVING_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }  # fmt: skip
    command = [sys.executable, "-c", "from agentserving_cli.main import main; main(prog_name='agentserving')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("agentserving", "po"), ["policy"]),
        (("agentserving", "policy", ""), ["get", "set"]),
        (("agentserving", "run", "--service-class", "b"), ["batch"]),
        (("agentserving", "tenant", "set", "acme", "--service-class", ""), ["interactive", "standard", "batch", "any"]),
        (("agentserving", "up", "--engine", "s"), ["simulator"]),
    ],
)
def test_commands_options_and_values_are_completed(words: tuple[str, ...], wanted: list[str]) -> None:
    assert completed(*words) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    environment = {**os.environ, "_AGENTSERVING_COMPLETE": f"{shell}_source"}
    command = [sys.executable, "-c", "from agentserving_cli.main import main; main(prog_name='agentserving')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "_AGENTSERVING_COMPLETE" in done.stdout, done.stderr
