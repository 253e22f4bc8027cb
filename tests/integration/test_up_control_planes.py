"""`agentserving up --control-planes 2`: commands and a recording follow the leader when the old one is killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest
from agentserving_replay.traces.file import read_trace
from integration.local_cluster import Cluster
from support.processes import command_lines

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]

NAMES = ("control-plane", "control-plane-1")


def leads(cluster: Cluster, name: str) -> bool:
    token = (cluster.directory / "keys" / "metrics.token").read_text().strip()
    page = urllib.request.Request(cluster.addresses["metrics"][name], headers={"authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(page, timeout=2) as answer:
            return "\nagentserving_leader 1.0" in answer.read().decode()
    except OSError:
        return False


def addresses(cluster: Cluster) -> dict[str, str]:
    return dict(zip(NAMES, cluster.addresses["control_plane"].split(","), strict=True))


def leader(cluster: Cluster) -> str:
    (name,) = [name for name in NAMES if leads(cluster, name)]
    return name


def complete(cluster: Cluster, program: str) -> None:
    """Runs a program of one call, which closes it."""
    headers = {"x-dynamo-session-id": program, "x-dynamo-session-final": "true"}
    url = cluster.addresses["gateway"]
    with openai.OpenAI(base_url=url, api_key=cluster.key, default_headers=headers, max_retries=0, timeout=60) as agent:
        agent.completions.create(model="tiny", prompt="x", max_tokens=3)
    cluster.wait(lambda: cluster.program_or_none(program).get("calls_completed") == "1")


def kill_leader(cluster: Cluster) -> None:
    """Kills the leader and waits until the other one leads."""
    old = leader(cluster)
    children = command_lines(cluster.process.pid)
    (process,) = [each for each, argv in children.items() if ["--listen", addresses(cluster)[old]] == argv[3:5]]
    # Stop the supervisor meanwhile: a restarted leader would take over its own lease immediately.
    cluster.process.send_signal(signal.SIGSTOP)
    process.kill()
    cluster.wait(lambda: any(leads(cluster, name) for name in NAMES if name != old))
    cluster.process.send_signal(signal.SIGCONT)
    cluster.wait(lambda: not leads(cluster, old))


def test_commands_and_a_recording_go_on_with_the_other_one_when_the_leader_is_killed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "state", "--engine", "simulator", "--engines", "1", "--control-planes", "2", auth=True)
    out, log, admin = tmp_path / "trace.jsonl", tmp_path / "record.log", cluster.directory / "keys" / "admin.key"
    argv = [sys.executable, "-m", "agentserving_cli.main", "record", "--out", str(out)]
    argv += ["--control-plane", cluster.addresses["control_plane"]]
    with log.open("wb") as said:
        environment = {**os.environ, "COLUMNS": "200", "AGENTSERVING_API_KEY": admin.read_text().strip()}
        recording = subprocess.Popen(argv, stdout=said, stderr=said, env=environment)
    try:
        cluster.wait(lambda: "recording " in log.read_text())
        complete(cluster, "before")
        kill_leader(cluster)
        assert "before" in cluster.cli("ps", "--all")
        # The recording retries at growing intervals, up to five seconds, and misses what ends before.
        names = (f"after-{number}" for number in itertools.count())
        cluster.wait(lambda: complete(cluster, next(names)) or "after-" in out.read_text())
        recording.send_signal(signal.SIGINT)
        assert recording.wait(30) == 0, log.read_text()
        assert "the control plane restarted 1 times" in log.read_text()
        _, programs = read_trace(out.read_bytes().splitlines())
        recorded = {program.program_id.partition("-")[0] for program in programs}
        assert recorded == {"before", "after"}
    finally:
        recording.kill()
        recording.wait()
        cluster.close()
