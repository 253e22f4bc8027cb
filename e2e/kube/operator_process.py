"""The operator as a process on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from agentserving_cli.local.ports import free_ports
from kube.server import OPERATOR, ApiServer


class OperatorProcess:
    """`python -m agentserving_operator` with the rights of a kubeconfig, by default the operator's own."""

    def __init__(
        self, server: ApiServer, directory: Path, name: str = "operator", *, kubeconfig: Path | None = None,
        **flags: str,
    ) -> None:  # fmt: skip
        (self.port,) = free_ports(1)
        self.log = directory / f"{name}.log"
        kubeconfig = kubeconfig or server.kubeconfig(OPERATOR)
        argv = [
            sys.executable, "-m", "agentserving_operator", "--kubeconfig", str(kubeconfig),
            "--image", "registry.test/a:1", "--vllm-image", "registry.test/v:1", "--etcd-image", "registry.test/e:1",
            "--http-host", "127.0.0.1", "--http-port", str(self.port), "--round-s", "1", "--stuck-s", "30",
            "--identity", name,
            *(word for flag, value in flags.items() for word in (f"--{flag}", value)),
        ]  # fmt: skip
        env = {**os.environ, "HOME": str(directory)}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out, env=env)

    def get(self, path: str) -> str:
        """The body of a response with status 200, else an empty string."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def rss_mib(self) -> float:
        """Resident memory in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (line,) = [each for each in lines if each.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024

    def visits_ended(self) -> int:
        """Visits that have ended so far, however they ended."""
        lines = self.get("/metrics").splitlines()
        counts = [line for line in lines if line.startswith("agentserving_operator_reconciles_total")]
        return round(sum(float(line.rpartition(" ")[2]) for line in counts))

    def close(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
