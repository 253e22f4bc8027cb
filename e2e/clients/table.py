"""The clients that are tried, a row each: how each is installed and run, and what must hold of its runs.

Cells that a client has not, with the reason:

- **sub-agents** of aider: it has none. Those of Qwen Code send nothing that tells them from the agent itself, so their
  calls are calls of its program.
- **sub-agents** of libraries: frameworks have no header for them. In Python each is a program() in the agent's tool, in
  JavaScript and Go it has headers of its own.
- **sub-agents** of Codex on vLLM: its tool for them is in a namespace, which vLLM 0.32 leaves out of the prompt; a
  review, which Codex runs as a sub-agent, stands in for it.
- **instrument()** is Python's alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from clients import installs

MODEL = "scripted"
ENGINES = VLLM, SIMULATOR = "vLLM", "simulator"
PROGRAMS = Path(__file__).with_name("programs")


class Grouping(Enum):
    """What makes a run one program when nothing is set up."""

    # A session header of the client.
    HEADER = auto()
    # Each call's messages extend those of the one before: all but the first call are one program.
    CONTENT = auto()
    # Nothing: the base URL must name the program.
    NONE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubAgents:
    """How a client is made to start sub-agents. `command` behind the client's own; empty: the prompt alone."""

    prompt: Mapping[str, str]
    command: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Their names as programs; None: their calls are those of the agent's own program.
    name: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A row. {prompt} of commands and {base_url} of variables and files are replaced."""

    # Puts it on this machine, and returns the directory that PATH begins with, or node_modules for a script of Node.
    install: Callable[[], Path]
    # As a user types it behind `agentserving run --`.
    command: tuple[str, ...]
    # Keeps it from calling its maker or a list of prices.
    quiet: Mapping[str, str] = field(default_factory=dict)
    # What else it needs without `run`: options, variables and files of its home.
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    grouping: Grouping
    # How the names of its programs begin then: a product, or a digest of its instructions.
    named: str = "prompt-"
    # Makes it call its tool, by engine.
    prompt: Mapping[str, str]
    # A file that the tool makes, and what is in it; "" = the client prints how often its tool has run.
    makes: str = ""
    text: str = ""
    # What it prints in the end, where that is not the model's sentence.
    answer: Mapping[str, str] = field(default_factory=dict)
    sub_agents: SubAgents | None
    # Engines whose cut answer it does not take for the last one: it calls again, and prints why it is refused.
    sees_refusal: Collection[str]
    # Python with instrument().
    has_hooks: bool = False


def both(text: str) -> dict[str, str]:
    """The same on both engines."""
    return {VLLM: text, SIMULATOR: text}


def file_by(tool: str) -> dict[str, str]:
    """A prompt that makes the agent create the file `called` with its shell."""
    return both(f"USE_FILE_{tool} please")


def coding() -> Path:
    """Commands of the coding agents."""
    return installs.npm("coding") / ".bin"


CODEX_CONFIG = f"""model = "{MODEL}"
model_provider = "agentserving"
[model_providers.agentserving]
name = "agentserving"
base_url = "{{base_url}}"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
"""
CODEX_FLAGS = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
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
# Where a library reads no variable for its model, our agents read OPENAI_MODEL.
OPENAI_MODEL = {"OPENAI_MODEL": MODEL}
HELPER = SubAgents(prompt=both("say hello"), command=dict.fromkeys(both(""), ("--sub-agent",)), name=both("helper"))


def framework(
    script: str, environment: str = "frameworks", answer: str = "", sees_refusal: Collection[str] = (), **quiet: str
) -> Client:
    """A row of an agent in Python."""
    return Client(
        install=lambda: installs.python(environment),
        command=("python", str(PROGRAMS / script), "{prompt}"),
        quiet=quiet,
        environment=OPENAI_MODEL,
        grouping=Grouping.CONTENT,
        prompt=both("say hello"),
        answer={VLLM: answer} if answer else {},
        sub_agents=HELPER,
        sees_refusal=sees_refusal,
        has_hooks=True,
    )


def in_node(script: str) -> Client:
    """A row of an agent in JavaScript."""
    return Client(
        install=lambda: installs.npm("js"),
        command=("node", script, "{prompt}"),
        environment=OPENAI_MODEL,
        grouping=Grouping.CONTENT,
        prompt=both("say hello"),
        sub_agents=HELPER,
        sees_refusal=(),
    )


CLIENTS = {
    "Claude Code": Client(
        install=coding,
        command=("claude", "--allowedTools", "Bash,Agent", "-p", "{prompt}"),
        quiet={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
        options=("--model", MODEL),
        grouping=Grouping.HEADER,
        named="claude-cli",
        prompt=file_by("Bash"),
        makes="called",
        sub_agents=SubAgents(prompt=both("USE_AGENT please"), name=both("claude-cli")),
        sees_refusal=ENGINES,
    ),
    "Codex": Client(
        install=coding,
        command=("codex", "exec", *CODEX_FLAGS, "{prompt}"),
        files={".codex/config.toml": CODEX_CONFIG},
        grouping=Grouping.HEADER,
        named="codex_exec",
        prompt=file_by("exec_command"),
        makes="called",
        sub_agents=SubAgents(
            prompt={VLLM: "", SIMULATOR: "USE_SPAWN please"},
            command={VLLM: ("codex", "exec", "review", "--uncommitted", *CODEX_FLAGS)},
            name={VLLM: "review", SIMULATOR: "collab_spawn"},
        ),
        sees_refusal=(),
    ),
    "OpenCode": Client(
        install=coding,
        command=("opencode", "run", "{prompt}"),
        options=("--model", f"agentserving/{MODEL}"),
        files={".config/opencode/opencode.json": json.dumps(OPENCODE_CONFIG)},
        grouping=Grouping.HEADER,
        named="opencode",
        prompt=file_by("bash"),
        makes="called",
        sub_agents=SubAgents(prompt=both("USE_OPENCODE_TASK please"), name=both("opencode")),
        sees_refusal=ENGINES,
    ),
    "Qwen Code": Client(
        install=coding,
        command=("qwen", "--auth-type", "openai", "-y", "-p", "{prompt}"),
        environment=OPENAI_MODEL,
        grouping=Grouping.CONTENT,
        named="QwenCode",
        prompt=file_by("run_shell_command"),
        makes="called",
        sub_agents=SubAgents(prompt=both("USE_QWEN_AGENT please")),
        sees_refusal=ENGINES,
    ),
    "aider": Client(
        install=lambda: installs.python("aider"),
        command=(
            "aider", "--yes-always", "--no-check-update", "--no-show-model-warnings", "--analytics-disable",
            "--edit-format", "whole", "--message", "{prompt}", "hello.txt",
        ),
        options=("--model", f"openai/{MODEL}"),
        environment={"OPENAI_API_BASE": "{base_url}"},
        grouping=Grouping.NONE,
        prompt=both("USE_EDIT please"),
        makes="hello.txt",
        text="hello from agentserving",
        answer=both("Applied edit to hello.txt"),
        sub_agents=None,
        sees_refusal=(SIMULATOR,),
    ),
    "LangGraph": framework("langgraph_agent.py"),
    "Agents SDK": framework("agents_sdk.py"),
    "Pydantic AI": framework("pydantic_ai_agent.py", sees_refusal=ENGINES),
    "CrewAI": framework(
        "crewai_agent.py", "crewai", sees_refusal=ENGINES, CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true"
    ),
    # Without the variable LiteLLM looks its prices up on the internet first.
    "ADK": framework("adk_agent.py", LITELLM_LOCAL_MODEL_COST_MAP="True"),
    "smolagents": framework("smolagents_agent.py", answer="forty two", sees_refusal=ENGINES),
    "Vercel AI SDK": in_node("vercel_ai.mjs"),
    "openai-go": Client(
        install=installs.go,
        command=("go_agent", "{prompt}"),
        environment=OPENAI_MODEL,
        grouping=Grouping.CONTENT,
        prompt=both("say hello"),
        sub_agents=HELPER,
        sees_refusal=(),
    ),
    "openai-node": in_node("openai_node.mjs"),
}  # fmt: skip
