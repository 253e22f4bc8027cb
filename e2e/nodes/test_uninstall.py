"""Uninstalling leaves nothing behind. The file's name makes it the last one to run."""

from __future__ import annotations

import json

from kube.agents import NAME
from kube.client import eventually
from kube.demo import Demo
from kube.kubectl import Kubectl, run

CRDS = ("agentservingclusters.agentserving.io", "agentservingtenants.agentserving.io")
# Objects of other owners that speak of ours: Events, and leases of nodes.
HISTORY = ("events", "events.events.k8s.io")
# Of the CRDs, which stay: the API that they make.
OF_THE_CRDS = (*CRDS, "apiservice.apiregistration.k8s.io/")


def left_behind(namespace: str) -> list[str]:
    """What is ours in that namespace or in none, of every kind that the API server lists; not the CRDs."""
    found = []
    for namespaced in ("true", "false"):
        kinds = run("kubectl", "api-resources", "--verbs=list", f"--namespaced={namespaced}", "-o", "name").split()
        names = ",".join(kind for kind in kinds if kind not in HISTORY)
        found += run("kubectl", "-n", namespace, "get", names, "-o", "name", "--ignore-not-found").split()
    ours, others = ("demo", "agentserving", "ticket-key"), (*OF_THE_CRDS, "namespace/")
    named = [name for name in found if any(word in name for word in ours) and not any(word in name for word in others)]
    # Names of volumes say nothing about their owner.
    return named + [claimed for claimed in volumes() if claimed == namespace]


def volumes() -> list[str]:
    """Namespaces whose claims hold a volume, one for each."""
    items = json.loads(run("kubectl", "get", "pv", "-o", "json"))["items"]
    return [each["spec"]["claimRef"]["namespace"] for each in items if "claimRef" in each["spec"]]


def test_nothing_is_left_of_a_deleted_cluster_and_an_uninstalled_operator(settled: Demo, operator: Kubectl) -> None:
    namespace = settled.kubectl.namespace
    assert len(left_behind(namespace)) > 20
    settled.kubectl("delete", "asc/demo", "--wait=true")
    settled.kubectl("delete", "pod", NAME)
    # The key of `helm test`, which the user has put there.
    operator("delete", "secret", "agentserving-test")
    run("helm", "uninstall", "agentserving", "-n", operator.namespace, "--wait")
    eventually("nothing is left", lambda: not left_behind(namespace), 120)
    eventually("nothing is left of the operator", lambda: not left_behind(operator.namespace), 120)
    # Helm leaves CRDs for good reason: deleting one deletes every cluster.
    run("kubectl", "delete", "crd", *CRDS)
    for each in (namespace, operator.namespace):
        run("kubectl", "delete", "namespace", each, "--wait=true")
