"""What a command gets that `agentserving run` starts."""

from __future__ import annotations

import json
import tomllib

import pytest
from agentserving.programs.headers import is_program_id
from agentserving_cli.run_environment import Run, command_of, environment_of, name_of, new_program_id
from hypothesis import given
from hypothesis import strategies as st

RUN = Run(gateway="http://h:1/v1", control_plane="h:2", program_id="p-1", key="as_k", model="m")


def test_every_client_family_is_led_to_the_program_of_the_run() -> None:
    found = environment_of(RUN, {"PATH": "/bin", "OPENAI_API_KEY": "sk-theirs"})
    assert found["PATH"] == "/bin"
    assert found["OPENAI_BASE_URL"] == found["OPENAI_API_BASE"] == "http://h:1/p/p-1/v1"
    assert found["ANTHROPIC_BASE_URL"] == "http://h:1/p/p-1"
    assert found["AGENTSERVING_GATEWAY"] == "http://h:1"
    assert found["OPENAI_API_KEY"] == found["ANTHROPIC_API_KEY"] == "as_k"
    assert found["AGENTSERVING_PROGRAM_ID"] == "p-1"
    assert found["ANTHROPIC_MODEL"] == found["OPENAI_MODEL"] == "m"
    assert found["AIDER_MODEL"] == "openai/m"
    assert json.loads(found["OPENCODE_CONFIG_CONTENT"])["model"] == "agentserving/m"


def test_a_model_that_the_user_has_chosen_stays_and_an_unknown_one_is_not_set() -> None:
    assert environment_of(RUN, {"ANTHROPIC_MODEL": "theirs"})["ANTHROPIC_MODEL"] == "theirs"
    without = Run(gateway="http://h:1", control_plane="h:2", program_id="p-1")
    found = environment_of(without, {})
    assert not [name for name in found if name.endswith("_MODEL")]
    assert found["OPENAI_API_KEY"] == "none"


@pytest.mark.parametrize("gateway", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/p/outer/v1"])
def test_a_run_inside_a_run_has_its_own_program(gateway: str) -> None:
    assert Run(gateway=gateway, control_plane="", program_id="inner").base_url == "http://h:1/p/inner"


def test_codex_gets_its_provider_as_options_and_other_commands_stay_as_they_are() -> None:
    command = command_of(RUN, ["/bin/codex", "exec", "-c", "x=1"])
    assert command[0] == "/bin/codex"
    assert command[-3:] == ["exec", "-c", "x=1"]
    settings = tomllib.loads("\n".join(command[2:-3:2]))
    assert settings["model"] == "m"
    assert settings["model_providers"]["agentserving"]["base_url"] == "http://h:1/p/p-1/v1"
    assert command_of(RUN, ["python", "codex"]) == ["python", "codex"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("claude -p hello", "claude"),
        ("/usr/bin/aider --message hello", "aider"),
        ("python my_agent.py --fast", "my_agent.py"),
        ("python3.12 -u agents/triage.py", "triage.py"),
        ("python -m agents.triage 1", "agents.triage"),
        ("uv run --with openai python -u my_agent.py", "my_agent.py"),
        ("uv run my_agent.py", "my_agent.py"),
        ("env KEY=1 timeout 10m node ./my_agent.mjs", "my_agent.mjs"),
        ("npx --yes @scope/agent", "agent"),
        ("python -c pass x", "python"),
        ("python -m", "python"),
        ("bash", "bash"),
    ],
)
def test_a_program_is_named_after_what_the_command_runs(command: str, name: str) -> None:
    assert name_of(command.split()) == name


@given(st.lists(st.one_of(st.text(), st.sampled_from(["python", "-m", "run", "env", "A=1"])), min_size=1))
def test_any_command_has_a_name(command: list[str]) -> None:
    assert isinstance(name_of(command), str)


@given(st.text())
def test_any_name_gives_an_id_that_fits_into_a_url(name: str) -> None:
    found = new_program_id(name)
    assert is_program_id(found)
    assert "/" not in found
    assert found != new_program_id(name)
