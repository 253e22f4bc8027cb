"""`kubectl agentserving render` prints objects that read a metric which the control plane really has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_cli.kube.autoscalers import METRIC, METRICS_PORT, Scaled, keda_objects, of_cluster, query
from agentserving_cli.kube.clusters import RESOURCE
from agentserving_cli.kube.main import main
from agentserving_controlplane.metrics import exposition
from agentserving_operator.manifests.common import Component, Port
from agentserving_operator.manifests.services import control_plane_service
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from support.kubectl_stand_in import install
from support.operator_objects import make_cluster
from support.served_plane import ServedPlane

CHART = Path(__file__).parents[2] / "charts/agentserving"
CLUSTER: dict[str, Any] = {
    "metadata": {"name": "demo", "namespace": "x"},
    "spec": {
        "engine": {"autoscaling": {"min": 0, "max": 6, "targetPercent": 50, "scaleInSeconds": 60, "idleSeconds": 90}}
    },
}
TOKEN: dict[str, Any] = {**CLUSTER, "spec": {**CLUSTER["spec"], "network": {"metricsTokenSecretName": "scraper"}}}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECTL_ANSWERS", str(tmp_path))
    (tmp_path / f"{RESOURCE}.json").write_text(json.dumps({"items": [CLUSTER]}))


def rendered(*words: str) -> str:
    done = CliRunner().invoke(main, ["render", *words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("answers")
def test_keda_gets_a_scaled_object_of_the_clusters_bounds() -> None:
    found = yaml.safe_load(rendered("keda", "--prometheus", "http://prometheus:9090"))
    assert (found["kind"], found["metadata"]) == ("ScaledObject", {"name": "demo-engines", "namespace": "x"})
    spec = found["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 6)
    assert (spec["cooldownPeriod"], spec["initialCooldownPeriod"]) == (90, 90)
    assert spec["scaleTargetRef"]["kind"] == "AgentServingCluster"
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["serverAddress"] == "http://prometheus:9090"
    assert trigger["metadata"]["query"] == query(of_cluster(CLUSTER))
    # A Prometheus without series says nothing: engines stay.
    assert trigger["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.usefixtures("answers")
def test_without_a_prometheus_keda_asks_control_planes_for_each_signal() -> None:
    (found,) = yaml.safe_load_all(rendered("keda"))
    triggers = {each["name"]: each["metadata"] for each in found["spec"]["triggers"]}
    assert {each: float(one["targetValue"]) for each, one in triggers.items()} == {
        "context": 0.5, "calls": 0.5, "service": 0.5, "waiting": 1.0,
    }  # fmt: skip
    assert triggers["context"]["valueLocation"] == f'{METRIC}{{signal="context"}}'
    assert not any("authenticationRef" in each for each in found["spec"]["triggers"])


def test_keda_sends_the_token_of_the_clusters_metrics() -> None:
    authentication, found = keda_objects(of_cluster(TOKEN))
    assert authentication["kind"] == "TriggerAuthentication"
    assert authentication["spec"]["secretTargetRef"] == [{"parameter": "token", "name": "scraper", "key": "token"}]
    for trigger in found["spec"]["triggers"]:
        assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
        assert trigger["metadata"]["authMode"] == "bearer"


def test_keda_asks_the_service_and_the_port_that_the_operator_creates() -> None:
    cluster = make_cluster()
    service = control_plane_service(cluster)
    assert Port.CONTROL_PLANE_HTTP == METRICS_PORT in [each["port"] for each in service["spec"]["ports"]]
    (found,) = keda_objects(of_cluster({**CLUSTER, "metadata": {"name": cluster.name, "namespace": "ns"}}))
    (url,) = {each["metadata"]["url"] for each in found["spec"]["triggers"]}
    assert service["metadata"]["name"] == cluster.child(Component.CONTROL_PLANE)
    assert url == f"http://{service['metadata']['name']}.ns.svc:{METRICS_PORT}/metrics"


@pytest.mark.usefixtures("answers")
def test_a_pod_autoscaler_comes_with_its_adapters_rule() -> None:
    output = rendered("hpa")
    found = yaml.safe_load(output)
    # Kubernetes' own autoscaler has no zero.
    assert (found["spec"]["minReplicas"], found["spec"]["maxReplicas"]) == (1, 6)
    shared, waiting = (each["external"] for each in found["spec"]["metrics"])
    assert shared["target"] == {"type": "AverageValue", "averageValue": "500m"}
    assert waiting["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert {each["metric"]["name"] for each in (shared, waiting)} == {METRIC}
    comments = "\n".join(line[2:] for line in output.splitlines() if line.startswith("# "))
    (rule,) = yaml.safe_load(comments.partition(":\n")[2])
    assert METRIC in rule["seriesQuery"]
    assert rule["metricsQuery"].startswith("max(")


def test_without_autoscaling_bounds_follow_the_engines_there_are() -> None:
    plain = of_cluster({**CLUSTER, "spec": {"engine": {"replicas": 3}}})
    expected = Scaled(namespace="x", name="demo", least=1, most=6, target_percent=80, scale_in_s=300, idle_s=600)
    assert plain == expected
    assert "/ 0.8 or" in query(plain)


async def test_the_control_plane_has_the_metric_with_these_labels() -> None:
    async with ServedPlane() as made:
        await made.attach("e1", capabilities={"max_num_seqs": 4, "block_size": 16, "num_blocks": 100})
        await made.open("p")
        await made.admit("p", prompt_tokens=800)
        families = {each.name: each for each in text_string_to_metric_families(exposition(made.plane).decode())}
    needed = {sample.labels["signal"]: sample.value for sample in families[METRIC].samples}
    assert needed == {"context": 0.5, "calls": 0.25, "service": 0.0, "waiting": 0.0}
    (found,) = keda_objects(of_cluster(CLUSTER))
    assert {each["name"] for each in found["spec"]["triggers"]} == set(needed)
    # What the query asks for beside the labels that Prometheus adds.
    asked = set(re.findall(r'(\w+)!?="', query(of_cluster(CLUSTER))))
    assert asked == {"namespace", "app_kubernetes_io_instance", "signal"}
    assert "podTargetLabels: [app.kubernetes.io/instance]" in (CHART / "templates/monitors.yaml").read_text()
