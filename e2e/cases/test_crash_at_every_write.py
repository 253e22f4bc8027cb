"""The operator is killed right after its k-th write, for every k: the next one reaches the same state as otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from kube.client import CLUSTERS, Kube, eventually
from kube.fatal_proxy import FatalProxy
from kube.operator_process import OperatorProcess
from kube.server import OPERATOR, ApiServer
from kube.visiting import MERGE, SIMULATED, change, children, conditions, live, make, wanted

# Each step is an edit. Together they change an object of every kind that the operator writes.
THERE: dict[str, Any] = {
    "engine": {"replicas": 5, "maxSequences": 4}, "gateway": {"replicas": 3, "port": 81},
    "controlPlane": {"programIdleSeconds": 5}, "scheduling": {"policy": "fcfs"},
}  # fmt: skip
BACK: dict[str, Any] = {
    "engine": {"replicas": 2, "maxSequences": None}, "gateway": None, "controlPlane": None, "scheduling": None,
}  # fmt: skip
# An upper bound of the writes of a step.
MANY = 60
TOUCHED = "e2e/touched"


def seen(admin: Kube, namespace: str) -> bool:
    """The status describes the current spec: the last thing that a visit writes, except Events."""
    found = live(admin, namespace)
    return bool(found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"])


def outcome(admin: Kube, namespace: str) -> dict[str, str]:
    """All objects, without what differs between any two namespaces."""
    found, uid = {}, live(admin, namespace)["metadata"]["uid"]
    for (kind, name), each in wanted(children(admin, namespace)).items():
        each["metadata"].pop("namespace")
        for annotation in ("agentserving.io/applied-hash", TOUCHED):
            each["metadata"].get("annotations", {}).pop(annotation, None)
        if kind == "Secret":
            each["data"] = sorted(each["data"])
        for field in ("clusterIP", "clusterIPs"):
            if each.get("spec", {}).get(field) not in (None, "None", ["None"]):
                each["spec"].pop(field)
        found[f"{kind} {name}"] = (
            json.dumps(each, sort_keys=True).replace(namespace, "<namespace>").replace(uid, "<uid>")
        )
    by_type = conditions(live(admin, namespace))
    found["conditions"] = json.dumps({kind: (each["status"], each["reason"]) for kind, each in by_type.items()})
    return found


def leftover(admin: Kube, namespace: str) -> None:
    """Creates an object that an older version of the operator would have left."""
    account = children(admin, namespace)["ServiceAccount", "demo-engine"]
    metadata = {"name": "old", **{key: account["metadata"][key] for key in ("labels", "ownerReferences")}}
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    admin.must("POST", path_of("ServiceAccount", namespace), body)


def change_nothing(admin: Kube, namespace: str) -> None:
    """Causes a visit: touches an object of the cluster."""
    body = {"metadata": {"annotations": {TOUCHED: str(time.time_ns())}}}
    admin.must("PATCH", path_of("Service", namespace, "demo-gateway"), body, MERGE)


class Trial:
    """One step in many namespaces: undisturbed in the first, cut off after the k-th write in the k-th."""

    def __init__(self, server: ApiServer, proxy: FatalProxy, directory: Path) -> None:
        self.admin, self.proxy, self._server, self._directory = server.admin, proxy, server, directory
        self.direct, self.fatal = server.kubeconfig(OPERATOR), server.kubeconfig(OPERATOR, proxy.url)
        self.clean = self.admin.namespace("crash-0")
        self.cut: list[str] = []

    @contextmanager
    def operator(self, kubeconfig: Path, namespaces: list[str]) -> Iterator[OperatorProcess]:
        """A process that looks after these namespaces."""
        flags = {"namespaces": ",".join(namespaces), "round-s": "5"}
        process = OperatorProcess(self._server, self._directory, kubeconfig=kubeconfig, **flags)
        try:
            yield process
        finally:
            process.close()

    def undisturbed(self) -> int:
        """How many writes the step takes."""
        self.proxy.arm(0, lambda: None)
        with self.operator(self.fatal, [self.clean]) as process:
            eventually("the step is done", lambda: seen(self.admin, self.clean))
            # The visit that wrote the status may still write Events.
            ended = process.visits_ended()
            change_nothing(self.admin, self.clean)
            eventually("another visit has ended", lambda: process.visits_ended() > ended)
            return self.proxy.writes

    def cut_off(self, namespace: str, limit: int) -> None:
        """The k-th write is the operator's last."""
        started: list[OperatorProcess] = []
        self.proxy.arm(limit, lambda: started[0].process.kill())
        with self.operator(self.fatal, [namespace]) as process:
            started.append(process)
            process.process.wait(60)
        assert self.proxy.fired

    def compare(self) -> None:
        """A new operator brings all of them to the state of the clean one."""
        before = {each: outcome(self.admin, each) for each in self.cut}
        expected = outcome(self.admin, self.clean)
        with self.operator(self.direct, self.cut):
            for each in self.cut:
                eventually(f"the status of {each} is written", lambda each=each: seen(self.admin, each))
                found = outcome(self.admin, each)
                other = {key for key in found.keys() | expected if found.get(key) != expected.get(key)}
                assert {key: (found.get(key), expected.get(key)) for key in other} == {}, each
        # Otherwise nothing was cut off.
        assert any(found != expected for found in before.values())


@pytest.fixture
def trial(server: ApiServer, tmp_path: Path) -> Iterator[Trial]:
    with FatalProxy(server.url) as proxy:
        found = Trial(server, proxy, tmp_path)
        yield found
    for each in (found.clean, *found.cut):
        server.admin.must("DELETE", f"{CLUSTERS.format(each)}/demo")


@pytest.mark.timeout(900)
def test_the_next_operator_completes_what_one_that_was_killed_after_any_write_left(trial: Trial) -> None:
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
