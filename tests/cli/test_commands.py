"""What a user reads when a command fails: one line, exit status 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agentserving_cli.local.state_dir import StateDir
from agentserving_cli.main import main
from click.testing import CliRunner


def failure(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1, done.output
    lines = done.output.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_no_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    message = failure("ps", "--state-dir", str(tmp_path))
    assert message == (
        f"Error: no cluster runs in {tmp_path}: start one with `agentserving up`, or name one with --control-plane"
    )


def test_addresses_left_by_a_killed_cluster_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(json.dumps({"control_plane": "127.0.0.1:1"}))
    assert "no cluster runs" in failure("top", "--state-dir", str(tmp_path))


def test_a_starting_cluster_is_distinguished_from_none(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.claim()
    try:
        assert "is not up yet" in failure("ps", "--state-dir", str(tmp_path))
    finally:
        state.release()


@pytest.mark.parametrize("command", [["ps"], ["top"], ["get", "p"], ["cancel", "p"], ["policy", "get"]])
def test_a_control_plane_that_does_not_answer_is_named(command: list[str]) -> None:
    message = failure(*command, "--control-plane", "127.0.0.1:1")
    assert message == "Error: the control plane at 127.0.0.1:1 does not answer: is its cluster up?"


@pytest.mark.parametrize("address", ["nonsense", "host:", ":70x"])
def test_a_bad_address_is_refused_before_it_is_tried(address: str) -> None:
    assert "expected host:port" in failure("ps", "--control-plane", address)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("7", "a policy is a JSON object, this is int"),
        ("{", "Expecting property name"),
        ('{"levels": 3}', "repeated field levels must be in"),
        ('{"quantums": []}', 'no field named "quantums"'),
    ],
)
def test_a_bad_policy_file_is_refused_with_the_offending_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "policy"
    path.write_text(content)
    line = failure("policy", "set", str(path), "--control-plane", "127.0.0.1:1")
    assert str(path) in line
    assert message in line


@pytest.mark.parametrize(
    "command", [["resume", "p", "--add", "100k"], ["run", "--budget", "100k", "true"], ["up", "--budget", "100k"]]
)
def test_a_budget_that_cannot_be_read_is_refused_with_the_form_of_one(command: list[str]) -> None:
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "'100k' is no part of a budget: write tokens=200k,engine-seconds=300,calls=50" in " ".join(
        done.stderr.split()
    )


def test_a_missing_policy_file_is_not_taken_for_a_preset() -> None:
    assert "there is no such file" in failure("policy", "set", "mine.json", "--control-plane", "127.0.0.1:1")


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--engines", "0"],
        ["up", "--gateway-port", "70000"],
        ["get"],
        ["nothing"],
        ["up", "--jwt-issuer", "https://a.b"],
        ["up", "--jwt-jwks-file", "/none"],
        ["up", "--jwt-issuer", "a", "--jwt-audience", "b", "--jwt-jwks-file", "/etc/hostname", "--no-auth"],
    ],
)
def test_a_bad_command_line_is_status_2_with_the_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.output
