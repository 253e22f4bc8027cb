"""Users' pod templates on a real API server: stored as written, applied once, refused with the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentserving_operator.api_server import path_of
from agentserving_operator.reconcile import VisitResult
from kube.client import Kube
from kube.server import OPERATOR, ApiServer
from kube.visiting import SIMULATED, change, conditions, live, make, visit

WRITES = ("create", "patch", "update", "delete")
# What a platform asks of pods, with forms that the API server writes in another way or completes.
ASKED: dict[str, Any] = {
    "metadata": {"labels": {"team": "agents"}, "annotations": {"example.com/cost-center": "7"}},
    "spec": {
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "podAffinityTerm": {
                            "topologyKey": "kubernetes.io/hostname",
                            "labelSelector": {"matchLabels": {"team": "agents"}},
                        },
                    }
                ]
            }
        },
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {
                "topologyKey": "topology.kubernetes.io/zone",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"team": "agents"}},
            }
        ],
        "imagePullSecrets": [{"name": "registry"}],
        "hostAliases": [{"ip": "10.0.0.7", "hostnames": ["models.internal"]}],
        "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
        "runtimeClassName": "gvisor",
        "volumes": [
            {"name": "ca", "configMap": {"name": "ca"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "1024Mi"}},
        ],
        "initContainers": [{"name": "fetch", "image": "fetch:1", "resources": {"limits": {"cpu": "1000m"}}}],
        "containers": [{"name": "logs", "image": "logs:1", "env": [{"name": "EMPTY", "value": ""}]}],
    },
}
MAIN = {"engine": "engine", "controlPlane": "control-plane", "gateway": "gateway", "store": "etcd"}


@pytest.fixture
def operator(server: ApiServer) -> Path:
    return server.kubeconfig(OPERATOR)


def asked_of(part: str) -> dict[str, Any]:
    main = {
        "name": MAIN[part],
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "envFrom": [{"configMapRef": {"name": "proxy"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/company", "readOnly": True}],
        "resources": {"requests": {"cpu": 1}, "limits": {"memory": "2048Mi"}},
        "livenessProbe": {"periodSeconds": 30},
    }
    template = {**ASKED, "spec": {**ASKED["spec"], "containers": [main, *ASKED["spec"]["containers"]]}}
    return {"etcd": {"template": template}} if part == "store" else {"template": template}


def test_every_part_takes_a_template_and_a_second_visit_writes_nothing(
    server: ApiServer, admin: Kube, namespace: str, operator: Path
) -> None:
    parts = {part: {**SIMULATED.get(part, {}), **asked_of(part)} for part in MAIN}
    make(admin, namespace, {**SIMULATED, **parts})
    visit(operator, namespace)
    for kind, name in (
        ("StatefulSet", "engine"), ("Deployment", "control-plane"), ("Deployment", "gateway"), ("StatefulSet", "etcd")
    ):  # fmt: skip
        spec = admin.get(path_of(kind, namespace, f"demo-{name}"))["spec"]["template"]["spec"]
        assert spec["runtimeClassName"] == "gvisor"
        assert {"name": "ca", "mountPath": "/etc/company", "readOnly": True} in spec["containers"][0]["volumeMounts"]
        assert spec["containers"][-1]["name"] == "logs"
        assert spec["initContainers"][-1]["name"] == "fetch"

    def writes() -> int:
        mine = [e for e in server.audited() if e.get("objectRef", {}).get("namespace") == namespace]
        return len([e for e in mine if e["verb"] in WRITES])

    written = writes()
    # A new operator does not remember anything.
    for _ in range(2):
        assert visit(operator, namespace) is VisitResult.SETTLED
    assert writes() == written


def test_a_template_that_is_taken_back_leaves_nothing(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    path = path_of("StatefulSet", namespace, "demo-engine")
    before = admin.get(path)["spec"]["template"]
    change(admin, namespace, {"engine": asked_of("engine")})
    visit(operator, namespace)
    assert admin.get(path)["spec"]["template"] != before
    change(admin, namespace, {"engine": {"template": None}})
    visit(operator, namespace)
    assert admin.get(path)["spec"]["template"] == before


def ready(admin: Kube, namespace: str) -> tuple[str, str]:
    found = conditions(live(admin, namespace))["Ready"]
    return found["reason"], found["message"]


def test_what_parts_rely_on_is_refused_with_field_and_reason_and_the_pods_stay(
    admin: Kube, namespace: str, operator: Path
) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    path = path_of("StatefulSet", namespace, "demo-engine")
    before = admin.get(path)["spec"]["template"]
    template = {"spec": {"containers": [{"name": "engine", "command": ["sleep", "1"]}]}}
    change(admin, namespace, {"engine": {"template": template}})
    assert visit(operator, namespace) is VisitResult.INVALID
    reason, message = ready(admin, namespace)
    assert reason == "InvalidSpec"
    assert message.startswith("spec.engine.template.spec.containers[engine].command: cannot be changed")
    assert admin.get(path)["spec"]["template"] == before


def test_what_kubernetes_refuses_is_reported_in_its_words(admin: Kube, namespace: str, operator: Path) -> None:
    make(admin, namespace)
    visit(operator, namespace)
    mount = {"name": "engine", "volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}
    change(admin, namespace, {"engine": {"template": {"spec": {"containers": [mount]}}}})
    visit(operator, namespace)
    reason, message = ready(admin, namespace)
    assert reason == "ApplyRefused"
    assert "demo-engine" in message
    assert "nowhere" in message
