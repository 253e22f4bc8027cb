"""A real cluster for tests: the `agentserving up` process, and its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


class Cluster:
    """`agentserving up` in a directory of its own."""

    def __init__(self, directory: Path, *flags: str, bound_s: float = 560) -> None:
        self.directory = directory
        self.log = directory.parent / "up.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agentserving_cli.main", "up", "--state-dir", str(directory), *flags],
                stdout=out,
                stderr=out,
            )
        self.wait(lambda: (directory / "cluster.json").exists() or self.process.poll() is not None, bound_s)
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        self.addresses = json.loads((directory / "cluster.json").read_text())
        self.tree = psutil.Process(self.process.pid).children(recursive=True)

    @staticmethod
    def wait(condition: Callable[[], Any], bound_s: float = 60) -> None:
        """Until a condition holds."""
        deadline = time.monotonic() + bound_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.1)

    def cli(self, *arguments: str) -> str:
        """What a command prints; fails the test when it fails."""
        argv = [sys.executable, "-m", "agentserving_cli.main", *arguments, "--state-dir", str(self.directory)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def program(self, program_id: str) -> dict[str, Any]:
        """A row of the process table; numbers as text, as JSON of protobuf has them."""
        found: dict[str, Any] = json.loads(self.cli("get", program_id, "-o", "json"))
        return found

    def program_or_none(self, program_id: str) -> dict[str, Any]:
        """The row, or an empty one while it cannot be had."""
        try:
            return self.program(program_id)
        except AssertionError:
            return {}

    def kill(self, module: str) -> None:
        """SIGKILL to every process of a component."""
        found = [
            p
            for p in psutil.Process(self.process.pid).children(recursive=True)
            if p.status() != psutil.STATUS_ZOMBIE and module in " ".join(p.cmdline())
        ]
        assert found, f"no process of {module}"
        for process in found:
            process.kill()

    def close(self) -> None:
        """Ctrl-C; every process of it must be gone."""
        self.tree += [p for p in psutil.Process(self.process.pid).children(recursive=True) if p not in self.tree]
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            _, alive = psutil.wait_procs(self.tree, timeout=10)
            for process in alive:
                process.kill()
        assert not alive, f"left behind: {alive}"
        assert self.process.returncode == 0
