"""The first five minutes as docs/start.md has them: its commands, in a shell, with the lines that `up` prints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.code_blocks import ROOT, blocks
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]

START = blocks(ROOT / "docs/start.md")


def block_with(words: str) -> str:
    """The code block of the page that contains the words."""
    (found,) = [block.text for block in START if words in block.text]
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    (line,) = block_with("up --engine simulator").splitlines()
    assert line.startswith("agentserving up ")
    home = tmp_path_factory.mktemp("start") / "agentserving"
    home.mkdir()
    made = Cluster(home / "default", *line.split()[2:], auth=True)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shell(cluster: Cluster) -> dict[str, str]:
    """Variables of the second terminal: what `up` tells its user to export, by the page's PATH."""
    exported = dict(re.findall(r"^\s*export (\w+)=(\S+)$", cluster.log.read_text(), re.M))
    named = re.findall(r"export (\w+)=", block_with("Ready. Point any"))
    # A proxy in the way adds one.
    assert set(named) == set(exported) - {"no_proxy"}
    own = {name: text for name, text in os.environ.items() if not name.startswith(("AGENTSERVING_", "OPENAI_"))}
    # Its state is where commands look for it.
    own["XDG_STATE_HOME"] = str(cluster.directory.parents[1])
    return {**own, **exported, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(shell: dict[str, str], command: str) -> str:
    """stdout of a command of the page."""
    done = subprocess.run(
        ["bash", "-ec", command], env=shell, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_a_new_user_runs_an_agent_and_looks_at_it(shell: dict[str, str]) -> None:
    run(shell, block_with("agentserving run -- python -m examples.with_client"))
    programs = json.loads(run(shell, "agentserving ps --all -o json"))["programs"]
    roots = [each for each in programs if not each.get("parent_program_id")]
    assert len(roots) == 1, "run makes a command, with everything it starts, one program"
    assert len(programs) > 1, "its sub-agents are children"
    root = roots[0]["program_id"]
    shown = {}
    for line in block_with("agentserving top").splitlines():
        command = line.partition("#")[0].strip().replace("ID", root)
        shown[command] = run(shell, command)
    assert root in shown[f"agentserving trace {root}"]
    assert "decode" in shown[f"agentserving trace {root}"]
    assert "auto" in shown["agentserving policy get"]
    assert "plas" in run(shell, "agentserving policy get")


def test_completion_is_loaded_by_the_shells_that_are_here(shell: dict[str, str]) -> None:
    for line in block_with("_AGENTSERVING_COMPLETE").splitlines():
        name = re.search(r"=(\w+)_source", line)
        assert name is not None
        assert "agentserving" in run(shell, f"_AGENTSERVING_COMPLETE={name[1]}_source agentserving"), line
