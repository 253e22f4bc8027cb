"""One process of the product in a test: started, killed, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from agentserving_cli.local.ports import free_ports
from support.eventually import DEADLINE_S, eventually

# A process that is stopped answers nothing; one on a busy machine answers late.
HTTP_TIMEOUT_S = 10


class Component:
    """`python -m MODULE FLAGS --http-port PORT`, which answers probes and /metrics on that port."""

    def __init__(self, module: str, directory: Path, **flags: object) -> None:
        self.module, self.log = module, directory / f"{module}-{len(list(directory.iterdir()))}.log"
        (self.http_port,) = free_ports(1)
        # Tests start processes many times: all of them share one cache of compiled code.
        self._env = {**os.environ, "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "agentserving-tests-pyc")}
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        self._argv = [sys.executable, "-m", module, "--http-port", str(self.http_port)]
        for name, value in flags.items():
            self._argv += [f"--{name.replace('_', '-')}", str(value)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Component:
        """Starts the process without waiting until it is ready."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(self._argv, stdout=out, stderr=out, env=self._env)
        return self

    def get(self, path: str) -> tuple[int, str]:
        """(HTTP status, body); status 0 if the process does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=HTTP_TIMEOUT_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The value of a metric without labels; NaN if the process does not answer or has no such metric."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return float("nan")

    def wait_ready(self, bound_s: float = DEADLINE_S, path: str = "/readyz") -> Component:
        """Returns when `path` answers 200. Fails with the end of the log if the process ends or the deadline passes."""

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            return self.get(path)[0] == 200

        try:
            eventually(ready, f"{self.module} answers 200 on {path}", bound_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-2000:]}") from None
        return self

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; SIGSTOP and SIGCONT suspend and continue the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
