"""A front in a test: an Envoy and its picker, two processes with one run directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from agentserving_cli.local.ports import free_ports
from support.component import Component


class Front:
    """`start` it; `url` is the agents' base URL, `picker` answers probes and metrics.

    `run_dir` outlives the front, and with it the engines known last; its path must be short, because of the sockets.
    """

    def __init__(self, directory: Path, run_dir: Path | None = None, **flags: object) -> None:
        (self.port,) = free_ports(1)
        self._own_dir = tempfile.TemporaryDirectory(prefix="as-front-")
        self._run_dir = str(run_dir or self._own_dir.name)
        self._log = directory / f"envoy-{self.port}.log"
        self.picker = Component("agentserving_gateway", directory, run_dir=self._run_dir, **flags)
        self.envoy: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base URL for agents."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> Front:
        """Starts both without waiting until they are ready."""
        argv = [
            sys.executable, "-m", "agentserving_gateway.front", "--listen", f"127.0.0.1:{self.port}",
            "--run-dir", self._run_dir, "--workers", "1",
        ]  # fmt: skip
        with self._log.open("ab") as out:
            self.envoy = subprocess.Popen(argv, stdout=out, stderr=out, env=dict(os.environ))
        self.picker.start()
        return self

    def wait_ready(self) -> Front:
        """Returns when calls have somewhere to go."""
        self.picker.wait_ready()
        return self

    def kill(self) -> None:
        """SIGKILL for both; returns when they are gone."""
        self.picker.kill()
        if self.envoy is not None:
            self.envoy.kill()
            self.envoy.wait()
            self.envoy = None
        self._own_dir.cleanup()
