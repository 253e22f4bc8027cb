"""`agentserving run`: a command and what it starts is one program."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.local_cluster import Cluster
from support.eventually import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]

# Knows nothing of programs.
AGENT = """
import json, os, subprocess, sys, urllib.request
def call():
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "prompt": "x", "max_tokens": 2}).encode()
    head = {"content-type": "application/json", "authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    urllib.request.urlopen(urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/completions", body, head)).read()
call()
if len(sys.argv) > 1:
    sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode or 7)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(
        tmp_path_factory.mktemp("run") / "state", "--engine", "simulator", "--engines", "1", "--store", "memory",
        auth=True,
    )  # fmt: skip
    try:
        yield made
    finally:
        made.close()


def argv(cluster: Cluster, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "agentserving_cli.main", "run", "--state-dir", str(cluster.directory), *arguments,
    ]  # fmt: skip


def run(cluster: Cluster, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv(cluster, *arguments), capture_output=True, text=True, timeout=90, env={**os.environ, **environment}
    )


def named(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    listed = json.loads(cluster.cli("ps", "--all", "-o", "json"))["programs"]
    return [program for program in listed if program["name"] == name]


def test_calls_of_a_command_and_of_its_children_are_one_program_that_ends_with_it(cluster: Cluster) -> None:
    done = run(cluster, "--name", "triage", "--", sys.executable, "-c", AGENT, AGENT)
    assert done.returncode == 7, done.stderr
    assert "See: agentserving get triage-" in done.stderr
    (program,) = named(cluster, "triage")
    assert (program["state"], program["outcome"]) == ("PROGRAM_STATE_CLOSED", "OUTCOME_FAILED")
    cluster.wait(lambda: cluster.program(program["program_id"])["calls_completed"] == "2")


def test_a_run_that_succeeds_is_completed_and_one_that_calls_elsewhere_is_told_so(cluster: Cluster) -> None:
    done = run(cluster, "--name", "quiet", "--", sys.executable, "-c", "print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "made no calls" in done.stderr
    assert named(cluster, "quiet")[0]["outcome"] == "OUTCOME_COMPLETED"


def test_a_run_with_a_budget_is_paused_goes_on_after_an_addition_and_costs_are_shown(cluster: Cluster) -> None:
    both = subprocess.Popen(
        argv(cluster, "--name", "limited", "--budget", "calls=1", "--", sys.executable, "-c", AGENT, AGENT),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    cluster.wait(lambda: any(program["pause_cause"] == "PAUSE_CAUSE_BUDGET" for program in named(cluster, "limited")))
    (program,) = named(cluster, "limited")
    assert "1 of 1 calls spent (100%)" in " ".join(cluster.cli("get", program["program_id"]).split())
    said = cluster.cli("resume", program["program_id"], "--add", "calls=5")
    assert said == f"program {program['program_id']} goes on, with 5 calls left\n"
    assert "made 2 calls" in both.communicate(timeout=90)[1]
    text = cluster.cli("cost", "-o", "csv", "--price", "3600")
    (row,) = [each for each in csv.DictReader(io.StringIO(text)) if each["class"] == "limited"]
    assert (row["calls"], row["outcome"]) == ("2", "failed")
    assert float(row["engine_cost"]) > 0


def test_a_run_inside_a_run_is_its_child(cluster: Cluster) -> None:
    inner = argv(cluster, "--name", "inner", "--", sys.executable, "-c", AGENT)
    assert run(cluster, "--name", "outer", "--", *inner).returncode == 0
    (outer,), (child,) = named(cluster, "outer"), named(cluster, "inner")
    assert child["parent_program_id"] == outer["program_id"]


def test_a_signal_reaches_the_command_and_its_end_closes_the_program(cluster: Cluster, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
    process = subprocess.Popen(argv(cluster, "--name", "stopped", "--", sys.executable, "-c", script))
    eventually(started.exists, "the command has started", 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert named(cluster, "stopped")[0]["outcome"] == "OUTCOME_FAILED"


def test_a_cancelled_run_fails_though_its_command_reports_success(cluster: Cluster, tmp_path: Path) -> None:
    started, ends = tmp_path / "started", tmp_path / "ends"
    wait = f"until [ -e {shlex.quote(str(ends))} ]; do sleep 0.1; done"
    command = ("sh", "-c", f"touch {shlex.quote(str(started))}; {wait}")
    process = subprocess.Popen(argv(cluster, "--name", "late", "--", *command), stderr=subprocess.PIPE, text=True)
    eventually(started.exists, "the command has started", 60)
    (program,) = named(cluster, "late")
    cluster.cli("cancel", program["program_id"])
    ends.touch()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, named(cluster, "late")[0]["outcome"]) == (1, "OUTCOME_CANCELLED")
    assert f"{program['program_id']} was cancelled" in err


def test_what_cannot_run_is_refused_before_a_program_is_opened(cluster: Cluster) -> None:
    done = run(cluster, "--name", "none", "--", "no-such-agent")
    assert (done.returncode, done.stderr) == (127, "Error: no-such-agent: no such command\n")
    done = run(cluster, "--name", "none", "--gateway", "http://127.0.0.1:1", "--", "true")
    assert done.returncode == 1
    assert "http://127.0.0.1:1 does not answer" in done.stderr
    done = run(cluster, "--name", "none", "--", "true", AGENTSERVING_CONTROL_PLANE="127.0.0.1:1")
    assert "give its URL with --gateway" in done.stderr
    assert named(cluster, "none") == []
