"""One process of ours in a test: started, killed, started again, and gone for certain at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from agentserving_cli.local.layout import free_ports


class Component:
    """`python -m MODULE FLAGS --http-port PORT`; ready when /readyz (or another path) says 200."""

    def __init__(self, module: str, directory: Path, **flags: object) -> None:
        self.module, self.log = module, directory / f"{module}-{len(list(directory.iterdir()))}.log"
        (self.http_port,) = free_ports(1)
        # Started many times: compiled once, wherever the caller keeps compiled code.
        self._env = {**os.environ, "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "agentserving-tests-pyc")}
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._argv = [sys.executable, "-m", module, "--http-port", str(self.http_port)]
        for name, value in flags.items():
            self._argv += [f"--{name.replace('_', '-')}", str(value)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Component:
        """Does not wait until it serves."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self._argv, stdout=out, stderr=out, env=self._env)
        return self

    def get(self, path: str) -> tuple[int, str]:
        """(HTTP status, text); status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """A metric without labels; NaN when it cannot be had."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return float("nan")

    def wait_ready(self, bound_s: float = 30, path: str = "/readyz") -> Component:
        """Until it serves."""
        deadline = time.monotonic() + bound_s
        while self.get(path)[0] != 200:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.02)
        return self

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT freeze and thaw it."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
