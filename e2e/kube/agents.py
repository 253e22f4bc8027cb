"""Agents inside the cluster: a pod of the project's image that runs Python scripts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import agentserving
from kube.kubectl import BOUND_S, Kubectl

IMAGE = f"docker.io/agentserving/agentserving:{agentserving.__version__}"
NAME = "agents"
TLS_DIR = "/etc/client-tls"
# CONTROL_PLANE PROGRAM: one call over gRPC; prints its HTTP status and number of tokens.
CALL = """
import json, sys
import agentserving
with agentserving.Client(sys.argv[1]) as client:
    body = {"model": "tiny", "max_tokens": 12, "messages": [{"role": "user", "content": "hello"}]}
    with client.generate("/v1/chat/completions", body, program_id=sys.argv[2]) as answer:
        print(answer.http_status, json.loads(answer.read())["usage"]["completion_tokens"])
"""
LOAD = Path(__file__).with_name("load_script.py")


def pod(certificate: str = "", key: str = "", server_name: str = "") -> dict[str, Any]:
    """The pod: restricted, and with the label of clients that NetworkPolicies admit to control plane and sidecars.

    `certificate` and `key`: Secrets with a client's certificate and with its API key (as `key`); "" = none.
    """
    env, volumes, mounts = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    if certificate:
        # Where the client library looks for it.
        files = {"CA": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}
        env = [{"name": f"AGENTSERVING_TLS_{name}", "value": f"{TLS_DIR}/{file}"} for name, file in files.items()]
        env.append({"name": "AGENTSERVING_TLS_SERVER_NAME", "value": server_name})
        mounts.append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
        volumes.append({"name": "tls", "secret": {"secretName": certificate, "defaultMode": 0o444}})
    if key:
        env.append({"name": "OPENAI_API_KEY", "valueFrom": {"secretKeyRef": {"name": key, "key": "key"}}})
    container = {
        "env": env, "volumeMounts": mounts,
        "name": NAME, "image": IMAGE, "command": ["python", "-c", "import signal; signal.pause()"],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME, "labels": {"agentserving.io/client": "true"}},
        "spec": {
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container], "volumes": volumes,
        },
    }  # fmt: skip


def start(kubectl: Kubectl, key: str) -> None:
    """The pod, ready, as a client of the cluster `demo` with its certificates and this API key."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "agents-key"}, "stringData": {"key": key}}
    name = f"demo-control-plane.{kubectl.namespace}.svc"
    kubectl.apply(secret, pod("demo-client-tls", "agents-key" if key else "", name))
    kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=2m")


def python(kubectl: Kubectl, script: str, *arguments: str, bound_s: float = BOUND_S) -> str:
    """stdout of a script that runs to its end in the pod."""
    return kubectl("exec", "-i", NAME, "--", "python", "-", *arguments, text=script, bound_s=bound_s)


class Load:
    """Agents that call the gateway while the block runs. After it, `calls` and the other fields hold the results.

    `unmanaged_s`: how long each call took that was served without a control plane; `answered` has the number of the
    other calls of each program.
    Each of `failures` is an error after the time since the start; a stream that broke off counts as a failure.
    """

    def __init__(self, kubectl: Kubectl, url: str, agents: int = 4, max_tokens: int = 60) -> None:
        argv = ["kubectl", "-n", kubectl.namespace, "exec", "-i", NAME, "--"]
        argv += ["python", "-c", LOAD.read_text(), url, str(agents), str(max_tokens)]
        self._argv = argv
        self._process: subprocess.Popen[str] | None = None
        self.calls = 0
        self.unmanaged_s: list[float] = []
        self.failures: list[str] = []
        self.answered: dict[str, int] = {}
        self.slowest_s = 0.0

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        # Printed when the first call was answered.
        first = self._process.stdout.readline()
        assert first.strip() == "running", first + (self._process.communicate()[1] if not first else "")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process is not None
        guard = threading.Timer(BOUND_S, self._process.kill)
        guard.start()
        # The end of its input stops it.
        out, err = self._process.communicate()
        guard.cancel()
        if self._process.returncode and kind is None:
            raise AssertionError(f"the agents failed: {err[-2000:]}")
        if out:
            result = json.loads(out.splitlines()[-1])
            self.calls, self.unmanaged_s = result["calls"], [took_s for _, took_s in result["unmanaged"]]
            self.failures, self.slowest_s = result["failures"], result["slowest_s"]
            self.answered = result["answered"]
            summary = f"{len(self.failures)} failed, {len(self.unmanaged_s)} unmanaged, slowest {self.slowest_s} s"
            unmanaged = [f"{at_s} s: unmanaged, took {took_s} s" for at_s, took_s in result["unmanaged"]]
            print(f"load: {self.calls} calls, {summary}", *self.failures, *unmanaged, sep="\n", file=sys.stderr)
