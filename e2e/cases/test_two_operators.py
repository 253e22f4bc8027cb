"""Two operators and a Lease: one works, and when it ends the other one does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from kube.client import Kube, eventually
from kube.operator_process import OperatorProcess
from kube.server import OPERATOR, ApiServer
from kube.visiting import children, live, make

# Their imports took 50 s on two cores with thirty other processes.
STARTED_BOUND_S = 180.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"


@pytest.fixture
def two(server: ApiServer, admin: Kube, namespace: str, tmp_path: Path) -> Iterator[dict[str, OperatorProcess]]:
    """Two operators by name, with the Lease and the right to it that the chart grants."""
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "operators"}}
    admin.must("POST", LEASES.format(namespace), lease)
    _may_hold(admin, namespace, "operators")
    flags = {"lease": f"{namespace}/operators", "namespaces": namespace}
    made = {name: OperatorProcess(server, tmp_path, name, **flags) for name in ("one", "another")}
    try:
        yield made
    finally:
        for each in made.values():
            each.close()


def _may_hold(admin: Kube, namespace: str, *leases: str) -> None:
    """The right to Leases that the chart grants."""
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lease"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}
    rule = {
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": list(leases),
        "verbs": ["get", "update"],
    }  # fmt: skip
    admin.must("POST", f"{rbac}/roles", {"metadata": {"name": "lease"}, "rules": [rule]})
    binding = {"metadata": {"name": "lease"}, "roleRef": reference, "subjects": [subject]}
    admin.must("POST", f"{rbac}/rolebindings", binding)


def holder(admin: Kube, namespace: str) -> str:
    found = admin.get(f"{LEASES.format(namespace)}/operators")
    return str(found.get("spec", {}).get("holderIdentity") or "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_second_operator_takes_over(
    admin: Kube, namespace: str, two: dict[str, OperatorProcess], how: signal.Signals
) -> None:
    first = eventually("one leads", lambda: holder(admin, namespace), STARTED_BOUND_S)
    (second,) = set(two) - {first}
    make(admin, namespace)
    eventually("all objects are there", lambda: len(children(admin, namespace)) == 21)
    assert eventually("the other is well", lambda: two[second].get("/healthz"), STARTED_BOUND_S) == "standing by\n"
    two[first].process.send_signal(how)
    two[first].process.wait(20)
    make(admin, namespace, name="later")
    eventually("the other one leads", lambda: holder(admin, namespace) == second)
    eventually("it works", lambda: len(children(admin, namespace)) == 42)
    assert "visit ended" in two[second].get("/healthz")


def test_an_operator_that_lost_its_lease_ends(admin: Kube, namespace: str, two: dict[str, OperatorProcess]) -> None:
    first = eventually("one leads", lambda: holder(admin, namespace), STARTED_BOUND_S)
    (second,) = set(two) - {first}
    two[first].process.send_signal(signal.SIGSTOP)
    try:
        eventually("the other one leads", lambda: holder(admin, namespace) == second)
    finally:
        two[first].process.send_signal(signal.SIGCONT)
    assert two[first].process.wait(30) == 1
    assert "lost the Lease" in two[first].log.read_text()


def test_a_standby_operator_ends_on_sigterm(admin: Kube, namespace: str, two: dict[str, OperatorProcess]) -> None:
    first = eventually("one leads", lambda: holder(admin, namespace), STARTED_BOUND_S)
    (second,) = set(two) - {first}
    eventually("the other is there", lambda: two[second].get("/healthz"), STARTED_BOUND_S)
    two[second].process.send_signal(signal.SIGTERM)
    assert two[second].process.wait(20) == 0


def test_operators_of_two_releases_do_not_fight_and_the_second_succeeds_the_first(
    server: ApiServer, admin: Kube, namespace: str, tmp_path: Path
) -> None:
    for name in ("blue", "green"):
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
        admin.must("POST", LEASES.format(namespace), lease)
    _may_hold(admin, namespace, "blue", "green")
    # Another image: each would replace the other's Deployments for ever.
    releases = {
        name: OperatorProcess(
            server, tmp_path, name, lease=f"{namespace}/{name}", namespaces=namespace, image=f"{name}:1"
        )
        for name in ("blue", "green")
    }
    try:
        make(admin, namespace)
        holder = eventually("one looks after it", lambda: live(admin, namespace).get("status", {}).get("operator"))
        first = holder.rpartition("/")[2]
        (second,) = set(releases) - {first}
        events = path_of("Event", namespace)

        def warned() -> list[dict[str, Any]]:
            return [each for each in admin.get(events)["items"] if each["reason"] == "OtherOperator"]

        (event,) = eventually("the other one says so", warned, STARTED_BOUND_S)
        assert f"Lease is {first}" in event["note"]
        deployment = path_of("Deployment", namespace, "demo-gateway")
        # Its holder may still be on its first visit.
        before = eventually("it has a gateway", lambda: admin.get(deployment))
        assert before["spec"]["template"]["spec"]["containers"][0]["image"] == f"{first}:1"
        rounds = releases[second].visits_ended()
        eventually("the other one has looked again", lambda: releases[second].visits_ended() > rounds)
        assert admin.get(deployment)["metadata"]["generation"] == before["metadata"]["generation"]

        releases[first].process.send_signal(signal.SIGTERM)
        releases[first].process.wait(20)
        eventually("it is succeeded", lambda: live(admin, namespace)["status"]["operator"].endswith(f"/{second}"))
    finally:
        for each in releases.values():
            each.close()
