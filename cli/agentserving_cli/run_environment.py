"""What a command gets that runs as one program: variables of all client families, and options for those without. Pure.

The base URL names the program (`/p/{program}`), so clients that send no id belong to it as well, and their children,
which inherit the environment.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from agentserving.programs.headers import MAX_NAME_BYTES

PROGRAM_ID = "AGENTSERVING_PROGRAM_ID"
# SDKs refuse to start without a key.
NO_KEY = "none"
_CONTEXT_TOKENS, _OUTPUT_TOKENS = 131072, 4096
# Commands that run another program, which their arguments name.
_LAUNCHERS = (
    r"python[0-9.]*|pypy[0-9.]*|node|deno|bun|bunx|npx|npm|pnpm|yarn|tsx|ts-node|ruby|perl|java|bash|dash|sh|zsh|env|"
    r"uv|uvx|pipx|poetry|hatch|pdm|go|sudo|nice|nohup|time|timeout|xargs"
)
# Options of theirs that take a value.
_VALUED = (
    "--with", "--python", "-p", "--package", "--extra", "--group", "--project", "--directory", "--env-file",
    "--require", "-r", "--import", "-W", "-X",
)  # fmt: skip
# Other options, variables, durations and subcommands.
_NOT_A_PROGRAM = r"-.*|.*=.*|[0-9.]+[smhd]?|run|exec|dlx|x|start|"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`gateway`: its base URL, with or without /v1. `key` and `model` may be empty."""

    gateway: str
    control_plane: str
    program_id: str
    key: str = ""
    model: str = ""

    @property
    def origin(self) -> str:
        """The gateway's base URL without /v1 and without the program of an outer run."""
        return re.sub(r"(/p/[^/]+)?(/v1)?/?$", "", self.gateway)

    @property
    def base_url(self) -> str:
        """Of Anthropic's clients; OpenAI's add /v1."""
        return f"{self.origin}/p/{self.program_id}"


def name_of(command: Sequence[str]) -> str:
    """The program's name, which is its class: `my_agent.py` of `uv run python -u my_agent.py`, `agents.triage` of
    `python3 -m agents.triage`. Policies learn by class, so all of Python must not be one."""
    first, *more = command
    name = PurePath(first).name
    if re.fullmatch(_LAUNCHERS, name) is None:
        return name
    for index, argument in enumerate(more):
        if argument == "-m" and more[index + 1 :]:
            return more[index + 1]
        if argument == "-c":
            break
        if index and more[index - 1] in _VALUED:
            continue
        if re.fullmatch(_NOT_A_PROGRAM, argument) is None:
            return name_of(more[index:])
    return name


def new_program_id(name: str) -> str:
    """An id that fits into a URL, readable and unused: my-agent-3f9a12bc."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[: MAX_NAME_BYTES // 2]
    return f"{readable or 'run'}-{secrets.token_hex(4)}"


def environment_of(run: Run, inherited: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the command. A model and an OpenCode configuration that the user has set stay."""
    key = run.key or NO_KEY
    variables = {
        PROGRAM_ID: run.program_id,
        "AGENTSERVING_CONTROL_PLANE": run.control_plane,
        "AGENTSERVING_GATEWAY": run.origin,  # for a run inside this one
        "OPENAI_BASE_URL": f"{run.base_url}/v1",
        "OPENAI_API_BASE": f"{run.base_url}/v1",  # aider, older SDKs
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": run.base_url,
        "ANTHROPIC_API_KEY": key,
    }
    defaults = {"OPENCODE_CONFIG_CONTENT": _open_code(run)}
    if run.model:
        names = ("OPENAI_MODEL", "ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL")
        defaults |= dict.fromkeys(names, run.model) | {"AIDER_MODEL": f"openai/{run.model}"}
    return {**defaults, **inherited, **variables}


def _open_code(run: Run) -> str:
    models = {run.model: {"limit": {"context": _CONTEXT_TOKENS, "output": _OUTPUT_TOKENS}}} if run.model else {}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{run.base_url}/v1", "apiKey": "{env:OPENAI_API_KEY}"},
        "models": models,
    }
    chosen = {"model": f"agentserving/{run.model}"} if run.model else {}
    return json.dumps({"provider": {"agentserving": provider}, **chosen})


def command_of(run: Run, command: Sequence[str]) -> list[str]:
    """The command, with options where a client reads no variables: Codex takes its provider from `-c` alone."""
    if PurePath(command[0]).stem != "codex":
        return list(command)
    provider = {"name": "agentserving", "base_url": f"{run.base_url}/v1", "wire_api": "responses"}
    settings = {"model_provider": "agentserving", **({"model": run.model} if run.model else {})}
    settings |= {f"model_providers.agentserving.{name}": value for name, value in provider.items()}
    settings["model_providers.agentserving.env_key"] = "OPENAI_API_KEY"
    options = [text for name, value in settings.items() for text in ("-c", f"{name}={json.dumps(value)}")]
    return [command[0], *options, *command[1:]]
