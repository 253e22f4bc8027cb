"""Whole agents of several frameworks on `agentserving up --engine simulator`: tools, answers, faults, one program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from agentserving_simulator.answers.behaviour import ANSWER
from agentserving_simulator.faults import HEADER
from clients import installs
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]

AGENTS = Path(__file__).with_name("agents")
TURNS, PARALLEL = 2, 2
# Script -> tools that it has run: each turn calls as many tools as a turn may.
EXPECTED = {
    "chat_loop.py": TURNS * PARALLEL,
    "responses_loop.py": TURNS * PARALLEL,
    "messages_loop.py": TURNS * PARALLEL,
    # One of each turn's two calls is the hand-off until it has taken place; then both are searches.
    "agents_sdk.py": 3,
    "langgraph_loop.py": TURNS * PARALLEL,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    flags = (f"--turns={TURNS}", f"--parallel-calls={PARALLEL}", "--speed=20")
    made = Cluster(
        tmp_path_factory.mktemp("simulated-agents") / "state", "--engine", "simulator", "--engines", "2",
        "--store", "memory", *(f"--engine-arg={flag}" for flag in flags), auth=True,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def run(cluster: Cluster, name: str, script: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """(what the agent prints, its program)."""
    return run_command(cluster, name, sys.executable, str(AGENTS / script), *arguments)


def run_command(cluster: Cluster, name: str, *argv: str) -> tuple[str, dict[str, Any]]:
    """(what the command prints, its program)."""
    command = [sys.executable, "-m", "agentserving_cli.main", "run", "--state-dir", str(cluster.directory)]
    done = subprocess.run(
        [*command, "--name", name, "--", *argv],
        capture_output=True, text=True, timeout=120, env={**os.environ, "no_proxy": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    listed = json.loads(cluster.cli("ps", "--all", "-o", "json"))["programs"]
    (program,) = [each for each in listed if each["name"] == name]
    return done.stdout.strip(), program


@pytest.mark.parametrize("script", EXPECTED)
def test_an_agent_runs_its_tools_and_gets_an_answer_as_one_program(script: str, cluster: Cluster) -> None:
    printed, program = run(cluster, f"run of {script}", script)
    assert printed == f"{EXPECTED[script]} {ANSWER}"
    assert program["outcome"] == "OUTCOME_COMPLETED"
    assert int(program["calls_completed"]) == TURNS + 1


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on PATH: agents in JavaScript were NOT run")
@pytest.mark.parametrize("script", ["openai_node.mjs", "vercel_ai.mjs"])
def test_an_agent_in_javascript_is_one_program_with_its_sub_agent_below(
    script: str, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(installs.npm("js"))
    for source in installs.HERE.glob("programs/*.mjs"):
        shutil.copy(source, tmp_path)
    printed, program = run_command(
        cluster, f"run of {script}", "node", str(tmp_path / script), "--sub-agent", "find it"
    )  # fmt: skip
    assert json.loads(printed)["answer"] == ANSWER
    assert (program["outcome"], int(program["calls_completed"])) == ("OUTCOME_COMPLETED", TURNS + 1)
    listed = json.loads(cluster.cli("ps", "--all", "-o", "json"))["programs"]
    helpers = [each for each in listed if each["parent_program_id"] == program["program_id"]]
    assert helpers
    for helper in helpers:
        assert (helper["outcome"], int(helper["calls_completed"])) == ("OUTCOME_COMPLETED", TURNS + 1)


def test_an_agent_gets_through_refusals_that_its_sdk_retries(cluster: Cluster) -> None:
    printed, program = run(cluster, "refused", "chat_loop.py", "+429@0.3,503@0.1")
    assert printed == f"{TURNS * PARALLEL} {ANSWER}"
    assert program["outcome"] == "OUTCOME_COMPLETED"


def test_a_cut_stream_reaches_the_client_through_the_gateway_and_its_call_ends(cluster: Cluster) -> None:
    headers = {HEADER: "cut=4", "x-agentserving-program-id": "cut"}
    with openai.OpenAI(
        base_url=cluster.addresses["gateway"], api_key=cluster.key, default_headers=headers, max_retries=0
    ) as sdk:
        stream = sdk.completions.create(model="tiny", prompt="x", max_tokens=100, stream=True)
        with pytest.raises(openai.APIConnectionError):
            list(stream)
        cluster.wait(lambda: cluster.program("cut").get("calls_in_flight", "0") == "0")
        limited = sdk.with_options(default_headers={HEADER: "429=7"})
        with pytest.raises(openai.RateLimitError) as refused:
            limited.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
        assert refused.value.response.headers["retry-after"] == "7"


def test_embeddings_and_counted_tokens_pass_the_gateway(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=cluster.addresses["gateway"], api_key=cluster.key, max_retries=0) as sdk:
        assert len(sdk.embeddings.create(model="tiny", input=["a", "b"]).data) == 2
        counted = sdk.post(
            "/messages/count_tokens", cast_to=object, body={"messages": [{"role": "user", "content": "x" * 40}]}
        )
        assert counted == {"input_tokens": pytest.approx(14, abs=4)}
