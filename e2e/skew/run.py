"""Parts of an earlier commit against today's control plane, and back, under load: `make skew BASE=commit`.

A cluster of this machine is started whole from the earlier commit, with etcd and keys. Today's control plane joins it
on standby, takes over, and hands back; gateway, sidecars, engines and the client stay what they are. No call may fail,
and programs keep their accounts. Both trees run in this checkout's environment. Exits with 1 when something failed.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
from agentserving_cli.local.layout import REPOSITORY_ROOTS
from agentserving_cli.local.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
MODULE, CLIENTS, LOAD_S, BOUND_S = "agentserving_controlplane", 6, 8.0, 120.0


def tree_of(commit: str, to: Path) -> Path:
    """The files of a commit; parts that are newer than it are not there."""
    packed = to.with_suffix(".tar")
    listed = subprocess.run(
        ["git", "ls-tree", "-d", "--name-only", commit], cwd=ROOT, check=True, capture_output=True, text=True
    )
    roots = [name for name in listed.stdout.split() if name in REPOSITORY_ROOTS]
    subprocess.run(["git", "archive", "--output", packed, commit, *roots], cwd=ROOT, check=True)
    with tarfile.open(packed) as tar:
        tar.extractall(to, filter="data")
    return to


def environment(tree: Path) -> dict[str, str]:
    """Everything that is started in it comes from this tree."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / name) for name in REPOSITORY_ROOTS)}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {BOUND_S:.0f} s")
        time.sleep(0.1)


def addresses(home: Path) -> dict[str, str]:
    """What `up` has written; {} while it is not whole."""
    try:
        found: dict[str, str] = json.loads((home / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def process_below(pid: int, module: str) -> int | None:
    """The child, or child's child, of a process that runs a module."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            if module in words:
                return child
            if (found := process_below(child, module)) is not None:
                return found
    return None


def leads(http_port: str) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{http_port}/readyz", timeout=2, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.text.startswith("ok: leading")


class Load:
    """Clients that call without a pause, each in one program, with and without streaming."""

    def __init__(self, base: str, key: str) -> None:
        self._base, self._key = base, key
        self._stop = threading.Event()
        self.answers: collections.Counter[str] = collections.Counter()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def _run(self, number: int) -> None:
        headers = {"authorization": f"Bearer {self._key}", "x-agentserving-program-id": f"skew-{number}"}
        with httpx.Client(timeout=60, headers=headers, trust_env=False) as client:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                body = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": f"{turn}"}]}
                try:
                    response = client.post(f"{self._base}/chat/completions", json={**body, "stream": turn % 2 == 0})
                    whole = turn % 2 or response.text.rstrip().endswith("[DONE]")
                    self.answers[str(response.status_code) if whole else "a stream without its end"] += 1
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()


@contextmanager
def cluster(tree: Path, home: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`agentserving up` of a tree."""
    argv = [sys.executable, "-m", "agentserving_cli.main", "up", "--engine", "simulator", "--model", "tiny"]
    up = subprocess.Popen([*argv, "--state-dir", str(home)], env=environment(tree), stdout=log, stderr=log)
    try:
        until(lambda: up.poll() is not None or bool(addresses(home)), "the earlier commit's cluster")
        if up.poll() is not None:
            raise RuntimeError("the earlier commit's cluster has ended")
        yield up
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(60)


def standby_of(pid: int) -> tuple[list[str], str]:
    """Command line and HTTP port of today's control plane next to a running one: its flags, at other ports."""
    words = [sys.executable, *Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")[1:]]
    rpc, http = map(str, free_ports(2))
    words[words.index("--listen") + 1], words[words.index("--http-port") + 1] = f"127.0.0.1:{rpc}", http
    return words, http


def calls_of(base: Path, tree: Path) -> int:
    """Calls that the leader has counted, by the command line of a tree."""
    argv = [sys.executable, "-m", "agentserving_cli.main", "ps", "-o", "json", "--state-dir", str(base)]
    done = subprocess.run(argv, env=environment(tree), capture_output=True, text=True, check=True)
    return sum(int(each["calls_completed"]) for each in json.loads(done.stdout)["programs"])


def exchange(home: Path, up: subprocess.Popen[bytes], old: Path, log: IO[bytes]) -> collections.Counter[str]:
    """The load's answers while leadership goes to today's control plane and back."""
    base = addresses(home)["gateway"]
    found = process_below(up.pid, MODULE)
    assert found is not None, "the cluster has no control plane"
    argv, http = standby_of(found)
    own = Path(f"/proc/{found}/cmdline").read_bytes().decode().split("\0")
    old_http = own[own.index("--http-port") + 1]
    with Load(base, (home / "keys" / "client.key").read_text().strip()) as load:
        time.sleep(LOAD_S)
        today = subprocess.Popen(argv, env=environment(ROOT), stdout=log, stderr=log)
        try:
            time.sleep(LOAD_S)
            os.kill(found, signal.SIGTERM)
            until(lambda: leads(http), "today's control plane leads")
            print("today's control plane leads", dict(load.answers), flush=True)
            time.sleep(LOAD_S)
            before = calls_of(home, old)
        finally:
            today.send_signal(signal.SIGTERM)
            today.wait(30)
        until(lambda: leads(old_http), "the earlier commit's control plane leads again")
        print("the earlier one leads again", dict(load.answers), flush=True)
        time.sleep(LOAD_S)
    after = calls_of(home, old)
    print(f"calls counted: {before}, then {after}")
    if after < before:
        load.answers["a program lost calls of its account"] += 1
    return load.answers


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="the earlier commit")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentserving-skew-") as directory:
        home, log_file = Path(directory) / "state", Path(directory) / "log"
        old = tree_of(given.base, Path(directory) / "tree")
        with log_file.open("wb") as log:
            try:
                with cluster(old, home, log) as up:
                    answers = exchange(home, up, old, log)
            except RuntimeError as error:
                print(f"{error}\n{log_file.read_text(errors='replace')[-3000:]}", file=sys.stderr)
                return 1
    print(f"{given.base} with today's control plane and back: {dict(answers)}")
    return 0 if set(answers) == {"200"} else 1


if __name__ == "__main__":
    sys.exit(main())
