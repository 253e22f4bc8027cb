"""A real one-machine cluster: the `agentserving up` process, and commands against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from support.eventually import eventually
from support.processes import running


class Cluster:
    """`agentserving up` with a state directory of its own."""

    def __init__(self, directory: Path, *flags: str, auth: bool = False, bound_s: float = 560) -> None:
        """`auth`: with keys, as users have it; most tests are about something else."""
        flags = (*flags, *(() if auth else ("--no-auth",)))
        self.directory = directory
        self.log = directory.parent / "up.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentserving_cli.main", "up", "--state-dir", str(directory), *flags],
                stdout=out,
                stderr=out,
            )
        try:
            self.wait(lambda: (directory / "cluster.json").exists() or self.process.poll() is not None, bound_s)
        except BaseException:
            self.process.terminate()
            self.process.wait(60)
            raise
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        self.addresses = json.loads((directory / "cluster.json").read_text())
        self.tree = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def key(self) -> str:
        """The user's API key, of a cluster with keys."""
        return (self.directory / "keys" / "client.key").read_text().strip()

    @staticmethod
    def wait(condition: Callable[[], Any], bound_s: float = 60) -> None:
        """Waits for a condition; most of them run a command, so they are polled slowly."""
        eventually(condition, condition.__qualname__, bound_s, poll_s=0.1)

    def cli(self, *arguments: str) -> str:
        """The output of a command; the test fails if the command does."""
        argv = [sys.executable, "-m", "agentserving_cli.main", *arguments, "--state-dir", str(self.directory)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def program(self, program_id: str) -> dict[str, Any]:
        """A program as `get -o json` prints it: int64 numbers are strings, as in protobuf's JSON."""
        found: dict[str, Any] = json.loads(self.cli("get", program_id, "-o", "json"))
        return found

    def program_or_none(self, program_id: str) -> dict[str, Any]:
        """The program, or {} while the command fails."""
        try:
            return self.program(program_id)
        except AssertionError:
            return {}

    def kill(self, module: str) -> None:
        """SIGKILL to every process that runs this module."""
        found = running(self.process.pid, module)
        assert found, f"no process of {module}"
        for process in found:
            process.kill()

    def close(self) -> None:
        """Ctrl-C; fails if a process of the cluster is left."""
        self.tree += [p for p in psutil.Process(self.process.pid).children(recursive=True) if p not in self.tree]
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            _, alive = psutil.wait_procs(self.tree, timeout=30)
            for process in alive:
                process.kill()
        assert not alive, f"left behind: {alive}"
        assert self.process.returncode == 0
