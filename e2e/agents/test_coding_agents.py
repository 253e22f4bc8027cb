"""Coding agents as users run them, against `agentserving up` with either engine: prompt, tool, result, answer.

npm installs the versions of package.json into the user's cache directory, once. Each agent has a home and a working
directory of its own, and nothing is sent to anyone but the cluster: the agents' own telemetry is off.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agentserving_cli.local.vllm_env import cache_dir
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(1200)]

MODEL = "scripted"
# Flags of `up`, and how the answers begin.
ENGINES = {
    "vLLM": ((), "Done. This is a scripted model"),
    "simulator": (("--engine", "simulator", "--model", MODEL), "Done. This is a simulated engine"),
}
PACKAGES = Path(__file__).with_name("package.json")
# An agent's start and two calls of 25k tokens each on a busy CPU.
AGENT_BOUND_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A command, what it needs in its environment, and what its headers say about programs."""

    binary: str
    arguments: tuple[str, ...]
    environment: Callable[[str, str], dict[str, str]]
    # Files of its home, by path; {base_url} is replaced.
    files: dict[str, str]
    # Agents whose requests name their session are one program; the calls of the others are programs of one call.
    is_one_program: bool


def claude_environment(base_url: str, key: str) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": key,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def openai_environment(base_url: str, key: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key, "OPENAI_MODEL": MODEL}


CODEX_CONFIG = f"""model = "{MODEL}"
model_provider = "agentserving"
[model_providers.agentserving]
name = "agentserving"
base_url = "{{base_url}}"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
"""
OPENCODE_CONFIG = {
    "provider": {
        "agentserving": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "{base_url}", "apiKey": "{env:OPENAI_API_KEY}"},
            "models": {MODEL: {"limit": {"context": 131072, "output": 4096}}},
        }
    },
    "autoupdate": False,
    "share": "disabled",
}
AGENTS = {
    "Claude Code": Agent(
        binary="claude",
        arguments=("--model", MODEL, "--allowedTools", "Bash", "-p", "say hello"),
        environment=claude_environment,
        files={},
        is_one_program=True,
    ),
    "Codex": Agent(
        binary="codex",
        arguments=("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "say hello"),
        environment=openai_environment,
        files={".codex/config.toml": CODEX_CONFIG},
        is_one_program=True,
    ),
    "OpenCode": Agent(
        binary="opencode",
        arguments=("run", "--model", f"agentserving/{MODEL}", "say hello"),
        environment=openai_environment,
        files={".config/opencode/opencode.json": json.dumps(OPENCODE_CONFIG)},
        is_one_program=True,
    ),
    "Qwen Code": Agent(
        binary="qwen",
        arguments=("--auth-type", "openai", "-y", "-p", "say hello"),
        environment=openai_environment,
        files={},
        is_one_program=False,
    ),
}


@pytest.fixture(scope="module")
def binaries() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    home = cache_dir() / f"coding-agents-{hashlib.sha256(PACKAGES.read_bytes()).hexdigest()[:12]}"
    if not (home / ".complete").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGES, home)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]
        subprocess.run(command, cwd=home, check=True, timeout=900)
        (home / ".complete").touch()
    return home / "node_modules" / ".bin"


@pytest.fixture(scope="module", params=[pytest.param("vLLM", marks=pytest.mark.vllm), "simulator"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags, _ = ENGINES[engine]
    made = Cluster(
        tmp_path_factory.mktemp("agents") / "state", "--engines", "1", "--store", "memory", *flags,
        auth=True, bound_s=800,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def answer(engine: str) -> str:
    return ENGINES[engine][1]


def programs(cluster: Cluster) -> dict[str, Any]:
    return {each["program_id"]: each for each in json.loads(cluster.cli("ps", "--all", "-o", "json"))["programs"]}


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_runs_a_tool_and_answers(
    name: str, cluster: Cluster, answer: str, binaries: Path, tmp_path: Path
) -> None:
    agent, before = AGENTS[name], programs(cluster)
    base_url = cluster.addresses["gateway"]
    for path, text in agent.files.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("{base_url}", base_url))
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [str(binaries / agent.binary), *agent.arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **agent.environment(base_url, cluster.key)},
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=AGENT_BOUND_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert answer in done.stdout
    new = [program for program_id, program in programs(cluster).items() if program_id not in before]
    calls = [int(program["calls_completed"]) for program in new]
    # The call of the tool, and the answer to its result.
    assert sum(calls) >= 2, done.stdout + done.stderr
    if agent.is_one_program:
        assert len(new) == 1, new


# As a user types them behind `agentserving run --`: no file, no variable, no model.
COMMANDS = {
    "Claude Code": ("claude", "--allowedTools", "Bash", "-p", "say hello"),
    "Codex": ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "say hello"),
    "OpenCode": ("opencode", "run", "say hello"),
    "Qwen Code": ("qwen", "--auth-type", "openai", "-y", "-p", "say hello"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_under_run_an_agent_needs_no_set_up_and_is_one_program(
    name: str, cluster: Cluster, answer: str, binaries: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "agentserving_cli.main", "run", "--state-dir", str(cluster.directory)]
    done = subprocess.run(
        [*command, "--name", f"run of {name}", "--", *COMMANDS[name]],
        env={"PATH": f"{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        cwd=work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=AGENT_BOUND_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert answer in done.stdout
    (program,) = [each for each in programs(cluster).values() if each["name"] == f"run of {name}"]
    assert program["outcome"] == "OUTCOME_COMPLETED"
    assert int(program["calls_completed"]) >= 2, done.stdout + done.stderr
