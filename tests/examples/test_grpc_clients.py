"""The examples in Go and TypeScript: generated from proto/, built, tested, and run against a cluster with keys.

Both open a program, make two calls with a tool wait between them, watch it, and cancel another one in mid-call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.local_cluster import Cluster
from support.eventually import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES, BUF = ROOT / "examples", ROOT / "scripts" / "buf.sh"

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("npm") is None, reason="no npm on PATH: the examples were NOT built"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("examples") / "state", "--engine", "simulator", "--engines", "2", auth=True)
    try:
        yield made
    finally:
        made.close()


def work(tmp_path: Path, language: str) -> Path:
    """A copy of an example in a checkout of its own, so that nothing is built into this one."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*.py", "*.pyi"))
    return Path(shutil.copytree(EXAMPLES / language, tmp_path / "examples" / language))


def run(directory: Path, *argv: str, **environment: str) -> str:
    """The output of a command; the test fails if the command does."""
    done = subprocess.run(
        argv, cwd=directory, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def environment(cluster: Cluster) -> dict[str, str]:
    return {
        "AGENTSERVING_CONTROL_PLANE": cluster.addresses["control_plane"],
        "OPENAI_API_KEY": cluster.key,
        "MODEL": "tiny",
    }


def check(cluster: Cluster, language: str, output: str) -> None:
    """What the example has printed is what the cluster knows; reports of its last call may come after its end."""

    def listed() -> dict[str, Any]:
        found = json.loads(cluster.cli("ps", "--all", "-o", "json"))["programs"]
        return {each["name"]: each for each in found if each["name"].startswith(language)}

    eventually(lambda: listed()[f"{language}-research"].get("calls_completed") == "2", "two calls", poll_s=0.2)
    assert listed().keys() == {f"{language}-research", f"{language}-cancelled"}
    assert "CLOSED after" in output
    assert "1 call cancelled" in output
    assert "another call is refused" in output


@pytest.mark.skipif(shutil.which("go") is None, reason="no go on PATH: the example was NOT built")
def test_the_example_in_go(cluster: Cluster, tmp_path: Path) -> None:
    directory = work(tmp_path, "go")
    run(directory, str(BUF), "generate")
    run(directory, "go", "vet", "./...")
    run(directory, "go", "test", "./...")
    check(cluster, "go", run(directory, "go", "run", ".", **environment(cluster)))


def test_the_example_in_typescript(cluster: Cluster, tmp_path: Path) -> None:
    directory = work(tmp_path, "typescript")
    run(directory, "npm", "install", "--no-audit", "--no-fund", "--no-package-lock")
    run(directory, str(BUF), "generate")
    run(directory, "npm", "run", "check")
    run(directory, "npm", "test")
    check(cluster, "typescript", run(directory, "npm", "start", **environment(cluster)))
