"""The operator dies right after its k-th write, for every k: the next one ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentserving_cli.local.layout import free_ports
from agentserving_operator.api_server import path_of
from kube.client import CLUSTERS, Kube, eventually
from kube.fatal_proxy import FatalProxy
from kube.server import OPERATOR, ApiServer
from kube.visiting import SIMULATED, change, children, conditions, live, make, wanted

# Each step is an edit; all objects of a kind that the operator writes change in one of them.
THERE: dict[str, Any] = {
    "engine": {"replicas": 5, "maxSequences": 4}, "gateway": {"replicas": 3, "port": 81},
    "controlPlane": {"programIdleSeconds": 5}, "scheduling": {"policy": "fcfs"},
}  # fmt: skip
BACK: dict[str, Any] = {
    "engine": {"replicas": 2, "maxSequences": None}, "gateway": None, "controlPlane": None, "scheduling": None,
}  # fmt: skip
# More writes than one step takes.
MANY = 60


@contextmanager
def operator(kubeconfig: Path, namespaces: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks after those namespaces."""
    (port,) = free_ports(1)
    argv = [
        sys.executable, "-m", "agentserving_operator", "--kubeconfig", str(kubeconfig),
        "--namespaces", ",".join(namespaces), "--image", "registry.test/a:1", "--vllm-image", "registry.test/v:1",
        "--etcd-image", "registry.test/e:1", "--http-host", "127.0.0.1", "--http-port", str(port), "--round-s", "5",
    ]  # fmt: skip
    with log.open("ab") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, "HOME": str(log.parent)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def seen(admin: Kube, namespace: str) -> bool:
    """The status speaks of the spec as it is, which is the last thing that a visit writes but for Events."""
    found = live(admin, namespace)
    return bool(found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"])


def outcome(admin: Kube, namespace: str) -> dict[str, str]:
    """What there is, without what differs between any two namespaces."""
    found, uid = {}, live(admin, namespace)["metadata"]["uid"]
    for (kind, name), each in wanted(children(admin, namespace)).items():
        each["metadata"].pop("namespace")
        each["metadata"].get("annotations", {}).pop("agentserving.io/applied-hash", None)
        if kind == "Secret":
            each["data"] = sorted(each["data"])
        for field in ("clusterIP", "clusterIPs"):
            if each.get("spec", {}).get(field) not in (None, "None", ["None"]):
                each["spec"].pop(field)
        found[f"{kind} {name}"] = (
            json.dumps(each, sort_keys=True).replace(namespace, "<namespace>").replace(uid, "<uid>")
        )
    told = conditions(live(admin, namespace))
    found["conditions"] = json.dumps({kind: (each["status"], each["reason"]) for kind, each in told.items()})
    return found


def leftover(admin: Kube, namespace: str) -> None:
    """An object of an older version of the operator, which is to be deleted."""
    account = children(admin, namespace)["ServiceAccount", "demo-engine"]
    metadata = {"name": "old", **{key: account["metadata"][key] for key in ("labels", "ownerReferences")}}
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    admin.must("POST", path_of("ServiceAccount", namespace), body)


class Trial:
    """One step in many namespaces at once: undisturbed in the first, cut off after the k-th write in the k-th."""

    def __init__(self, server: ApiServer, proxy: FatalProxy, log: Path) -> None:
        self.admin, self.proxy, self.log = server.admin, proxy, log
        self.direct, self.fatal = server.kubeconfig(OPERATOR), server.kubeconfig(OPERATOR, proxy.url)
        self.clean = self._namespace(0)
        self.cut: list[str] = []

    def _namespace(self, number: int) -> str:
        return self.admin.namespace(f"crash-{number}")

    def undisturbed(self) -> int:
        """How many writes the step takes."""
        self.proxy.arm(0, lambda: None)
        with operator(self.fatal, [self.clean], self.log):
            eventually("the step is done", lambda: seen(self.admin, self.clean))
            count, quiet_since = self.proxy.writes, time.monotonic()
            # Events come after the status.
            while time.monotonic() - quiet_since < 2.0:
                if self.proxy.writes != count:
                    count, quiet_since = self.proxy.writes, time.monotonic()
                time.sleep(0.05)
        return count

    def cut_off(self, namespace: str, limit: int) -> None:
        """The k-th write is the operator's last."""
        process: list[subprocess.Popen[bytes]] = []
        self.proxy.arm(limit, lambda: process[0].kill())
        with operator(self.fatal, [namespace], self.log) as started:
            process.append(started)
            started.wait(60)
        assert self.proxy.fired

    def compare(self) -> None:
        """A new operator brings all of them to where the clean one is."""
        before = {each: outcome(self.admin, each) for each in self.cut}
        expected = outcome(self.admin, self.clean)
        with operator(self.direct, self.cut, self.log):
            for each in self.cut:
                eventually(f"{each} is told about", lambda each=each: seen(self.admin, each))
                found = outcome(self.admin, each)
                other = {key for key in found.keys() | expected if found.get(key) != expected.get(key)}
                assert {key: (found.get(key), expected.get(key)) for key in other} == {}, each
        # Or nothing was cut off.
        assert any(found != expected for found in before.values())


@pytest.fixture
def trial(server: ApiServer, tmp_path: Path) -> Iterator[Trial]:
    with FatalProxy(server.url) as proxy:
        found = Trial(server, proxy, tmp_path / "operator.log")
        yield found
    for each in (found.clean, *found.cut):
        server.admin.must("DELETE", f"{CLUSTERS.format(each)}/demo")


@pytest.mark.timeout(900)
def test_an_operator_that_dies_after_any_write_leaves_nothing_that_the_next_does_not_mend(trial: Trial) -> None:
    make(trial.admin, trial.clean)
    needed = trial.undisturbed()
    assert 20 < needed < MANY
    for number in range(1, needed + 1):
        namespace = trial.admin.namespace(f"crash-{number}")
        trial.cut.append(namespace)
        make(trial.admin, namespace)
        trial.cut_off(namespace, number)
    trial.compare()
    for edit in (THERE, BACK):
        for each in (trial.clean, *trial.cut):
            leftover(trial.admin, each)
            change(trial.admin, each, edit)
        needed = trial.undisturbed()
        assert 3 < needed < len(trial.cut)
        for number in range(1, needed + 1):
            trial.cut_off(trial.cut[number - 1], number)
        trial.compare()
    assert SIMULATED["engine"]["replicas"] == BACK["engine"]["replicas"]
