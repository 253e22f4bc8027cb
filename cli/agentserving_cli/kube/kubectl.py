"""kubectl as a child process, the only access to Kubernetes: it handles kubeconfig, sign-in plugins and proxies."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BOUND_S = 30.0
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


class KubectlError(RuntimeError):
    """kubectl failed; the message is its own, or says how to install it."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Which cluster and namespace; empty = kubectl's defaults."""

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""

    def argv(self, *words: str) -> list[str]:
        """kubectl's command line for these words. KubectlError."""
        found = shutil.which("kubectl")
        if found is None:
            raise KubectlError("kubectl is not on PATH: install it, or name a control plane with `agentserving`")
        flags = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--namespace": self.namespace}
        return [found, *(f"{flag}={value}" for flag, value in flags.items() if value), *words]

    def get(self, *what: str) -> dict[str, Any]:
        """An object or a list. KubectlError."""
        try:
            done = subprocess.run(
                self.argv("get", *what, "-o", "json"), capture_output=True, text=True, timeout=BOUND_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"kubectl get {what[0]}: the API server did not answer within {BOUND_S:.0f} s") from None
        if done.returncode:
            raise KubectlError(said(done.stderr) or f"kubectl get {what[0]}: exit status {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def items(self, *what: str) -> list[dict[str, Any]]:
        """The items of a list. KubectlError."""
        items: list[dict[str, Any]] = self.get(*what)["items"]
        return items

    def logs(self, selector: str, container: str, since_s: float) -> Iterator[str]:
        """The lines of the logs of one container of pods, one pod after the other. KubectlError."""
        since = f"--since={math.ceil(since_s)}s"
        argv = self.argv("logs", "-l", selector, "-c", container, "--tail=-1", since, "--max-log-requests=1000")
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as child:
                yield from child.stdout or ()
            if child.returncode:
                errors.seek(0)
                raise KubectlError(said(errors.read()) or f"kubectl logs: exit status {child.returncode}")

    @contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[str]:
        """Forwards a local port to a port of `target` (svc/name, pod/name); gives its host:port. KubectlError."""
        argv = self.argv("port-forward", "--address=127.0.0.1", target, f":{port}")
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                yield f"127.0.0.1:{_port_of(child, target, errors)}"
            finally:
                child.terminate()
                child.wait()
                if child.stdout is not None:
                    child.stdout.close()


def _port_of(child: subprocess.Popen[str], target: str, errors: Any) -> int:
    """Waits for the line with the port. A timer kills kubectl when that takes too long, which ends the wait."""
    assert child.stdout is not None
    bound = threading.Timer(BOUND_S, child.kill)
    bound.start()
    try:
        for line in child.stdout:
            found = _FORWARDING.search(line)
            if found:
                return int(found[1])
    finally:
        bound.cancel()
    child.wait()
    errors.seek(0)
    raise KubectlError(said(errors.read()) or f"no way to {target} within {BOUND_S:.0f} s: does its pod run?")


def said(stderr: str) -> str:
    """The last line of kubectl's output, without its prefix."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ").removeprefix("Error from server ") if lines else ""
