"""kubectl and helm as a user runs them, and forwarded ports. KUBECONFIG selects the cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BOUND_S = 120.0


def run(*argv: str, text: str | None = None, bound_s: float = BOUND_S) -> str:
    """stdout of a command. AssertionError with its output when it fails."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=bound_s, check=False)
    assert done.returncode == 0, f"{' '.join(argv[:6])}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout


def _ctr(node: str) -> list[str]:
    """containerd's client on a node: the only thing here that depends on the kind of cluster."""
    if os.environ.get("CLUSTER") == "kind":
        return ["docker", "exec", node, "ctr", "-n", "k8s.io"]
    state = Path(os.environ["KUBECONFIG"]).parent
    return ["ctr", "-a", str(state / "nodes" / node.removeprefix("node") / "containerd.sock"), "-n", "k8s.io"]


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def __call__(self, *argv: str, text: str | None = None, bound_s: float = BOUND_S) -> str:
        return run("kubectl", "-n", self.namespace, *argv, text=text, bound_s=bound_s)

    def apply(self, *manifests: dict[str, Any]) -> None:
        """As one JSON list: kubectl does not split a JSON stream at YAML separators."""
        self("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def get(self, *what: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self("get", *what, "-o", "json"))

    def find(self, kind: str, labels: str = "") -> list[Any]:
        """Objects with these labels."""
        items: list[Any] = self.get(kind, *(("-l", labels) if labels else ()))["items"]
        return items

    def patch(self, what: str, patch: dict[str, Any]) -> None:
        """A merge patch, as `kubectl edit` sends it."""
        self("patch", what, "--type=merge", "-p", json.dumps(patch))

    def delete_now(self, pod: str) -> None:
        """Without a grace period: a replacement is created while the old one may still run."""
        self("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

    def crash(self, pod: str, container: str) -> None:
        """SIGKILL, without a drain. kubelet restarts the container."""
        self.signal(pod, container, "KILL")

    def signal(self, pod: str, container: str, name: str) -> None:
        """Signals its main process from the node: PID 1 ignores KILL and STOP from its own namespace."""
        found = self.get(f"pod/{pod}")
        started = [*found["status"].get("initContainerStatuses", []), *found["status"]["containerStatuses"]]
        (identity,) = [each["containerID"] for each in started if each["name"] == container]
        run(*_ctr(found["spec"]["nodeName"]), "task", "kill", "-s", name, identity.removeprefix("containerd://"))

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """host:port on this machine, forwarded to one of the target's pods for as long as that runs."""
        argv = ["kubectl", "-n", self.namespace, "port-forward", target, f":{port}"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            # It writes a line for each connection, which must be read or its pipe fills up.
            reader = threading.Thread(target=process.stdout.read)
            try:
                line = process.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+) ", line)
                assert found, f"{' '.join(argv)}: {line}"
                reader.start()
                yield f"127.0.0.1:{found[1]}"
            finally:
                process.kill()
                if reader.ident is not None:
                    reader.join()


def conditions(cluster: dict[str, Any]) -> dict[str, str]:
    """Status of each condition, by type."""
    return {each["type"]: each["status"] for each in cluster.get("status", {}).get("conditions", [])}


def is_settled(cluster: dict[str, Any]) -> bool:
    """Whether the current spec is in force and no rollout is in progress."""
    status, found = cluster.get("status", {}), conditions(cluster)
    current = status.get("observedGeneration") == cluster["metadata"]["generation"]
    return current and found.get("Ready") == "True" and found.get("Progressing") == "False"
