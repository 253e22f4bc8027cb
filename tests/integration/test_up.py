"""`agentserving up`: what fails at the start, what is reported while it runs, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.timeout(120)]

UP = [sys.executable, "-m", "agentserving_cli.main", "up", "--engine", "simulator", "--store", "memory"]


def refused(*flags: str, **env: str) -> str:
    done = subprocess.run(
        [*UP, "--engines", "1", *flags], capture_output=True, text=True, timeout=60, env={**os.environ, **env}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def processes_of(directory: Path) -> list[psutil.Process]:
    """Every process with the directory on its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(directory) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_taken_gateway_port_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("--state-dir", str(tmp_path / "s"), "--gateway-port", str(port))
    assert f"port {port} is taken by another program" in message
    assert "--gateway-port" in message
    assert not (tmp_path / "s").exists()


def test_an_engine_that_never_starts_is_reported_with_its_own_reason(tmp_path: Path) -> None:
    message = refused("--state-dir", str(tmp_path), "--engine-arg=--speed=0")
    assert "engine-0 ended with code 2: agentserving_simulator: error: --speed must be positive" in message
    assert f"log: {tmp_path}/logs/engine-0.log" in message
    assert not processes_of(tmp_path)


def test_an_unknown_policy_is_refused_in_the_control_planes_words(tmp_path: Path) -> None:
    assert "'nonsense' is not one of" in refused("--state-dir", str(tmp_path), "--policy", "nonsense")


def test_a_python_without_vllm_is_named(tmp_path: Path) -> None:
    flags = ("--engine", "vllm", "--state-dir", str(tmp_path))
    assert "has no vllm" in refused(*flags, AGENTSERVING_VLLM_PYTHON=sys.executable)
    assert "/nowhere/python: No such file" in refused(*flags, AGENTSERVING_VLLM_PYTHON="/nowhere/python")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen([*UP, "--state-dir", str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "control-plane" in process.stdout.readline()
        process.send_signal(number)
        assert process.wait(30) == 130
        assert "ending before it is up" in process.stdout.read()
    assert not processes_of(tmp_path)


def test_two_clusters_run_side_by_side_and_sigkill_leaves_no_process_of_one(tmp_path: Path) -> None:
    flags = ("--engine", "simulator", "--store", "memory", "--engines", "1")
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first = Cluster(tmp_path / "1" / "state", *flags)
    second = Cluster(tmp_path / "2" / "state", *flags)
    try:
        assert len(processes_of(first.directory)) >= 4
        first.process.kill()
        first.process.wait()
        first.wait(lambda: not processes_of(first.directory), 15)
        with urllib.request.urlopen(f"{second.addresses['gateway']}/models", timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
    finally:
        second.close()


def _binds(other_program: socket.socket, port: int) -> bool:
    try:
        other_program.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@contextmanager
def port_of_a_killed(cluster: Cluster, marker: str, port: int) -> Iterator[None]:
    """Kills a component; another program takes its port before it can be restarted."""
    (victim,) = [p for p in cluster.tree if p.is_running() and marker in " ".join(p.cmdline())]
    cluster.process.send_signal(signal.SIGSTOP)
    with socket.socket() as other_program:
        victim.kill()
        other_program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A killed process releases its sockets some time after it has become a zombie.
        cluster.wait(lambda: _binds(other_program, port))
        other_program.listen()
        cluster.process.send_signal(signal.SIGCONT)
        yield


def test_a_component_that_cannot_restart_is_reported_and_the_others_serve(tmp_path: Path) -> None:
    """Another program on the port of a killed engine must not be mistaken for the engine."""
    cluster = Cluster(tmp_path / "state", "--engine", "simulator", "--store", "memory", "--engines", "2")
    try:
        marker = "--engine-id engine-0 --channel"
        (engine,) = [p for p in cluster.tree if marker in " ".join(p.cmdline())]
        port = int(engine.cmdline()[engine.cmdline().index("--listen") + 1].rpartition(":")[2])
        with port_of_a_killed(cluster, marker, port):
            cluster.wait(lambda: "does not come up any more" in cluster.log.read_text(), 30)
        message = cluster.log.read_text()
        assert "engine-0 was killed by SIGKILL" in message
        assert f"engine-0 cannot start: another program has taken its port {port}" in message
        body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 2}).encode()
        request = urllib.request.Request(f"{cluster.addresses['gateway']}/completions", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["x-agentserving-engine"] == "engine-1"
    finally:
        cluster.close()


def test_a_cluster_whose_gateway_is_lost_ends_with_the_reason(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "state", "--engine", "simulator", "--store", "memory", "--engines", "1")
    port = int(cluster.addresses["gateway"].rpartition(":")[2].partition("/")[0])
    try:
        with port_of_a_killed(cluster, "--config-path", port):
            assert cluster.process.wait(60) == 1
    finally:
        cluster.process.kill()
    reason = f"4 starts failed. The last: gateway cannot start: another program has taken its port {port}"
    assert f"Error: gateway does not come up any more, {reason}" in cluster.log.read_text()
    assert not processes_of(cluster.directory)
