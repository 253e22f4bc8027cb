"""`kubectl agentserving render` prints objects that read a metric which the control plane really has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_cli.kube.autoscalers import METRIC, Scaled, of_cluster, query
from agentserving_cli.kube.clusters import RESOURCE
from agentserving_cli.kube.main import main
from agentserving_controlplane.metrics import exposition
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from support.kubectl_stand_in import install
from support.served_plane import ServedPlane

CHART = Path(__file__).parents[2] / "charts/agentserving"
CLUSTER: dict[str, Any] = {
    "metadata": {"name": "demo", "namespace": "x"},
    "spec": {"engine": {"autoscaling": {"min": 0, "max": 6, "targetPercent": 50, "scaleInSeconds": 60}}},
}


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
    assert spec["scaleTargetRef"]["kind"] == "AgentServingCluster"
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["serverAddress"] == "http://prometheus:9090"
    assert trigger["metadata"]["query"] == query(of_cluster(CLUSTER))


@pytest.mark.usefixtures("answers")
def test_a_pod_autoscaler_comes_with_its_adapters_rule() -> None:
    output = rendered("hpa")
    found = yaml.safe_load(output)
    # Kubernetes' own autoscaler has no zero.
    assert (found["spec"]["minReplicas"], found["spec"]["maxReplicas"]) == (1, 6)
    (metric,) = found["spec"]["metrics"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "500m"}
    comments = "\n".join(line[2:] for line in output.splitlines() if line.startswith("# "))
    (rule,) = yaml.safe_load(comments.partition(":\n")[2])
    assert METRIC in rule["seriesQuery"]
    assert rule["metricsQuery"].startswith("max(")


def test_without_autoscaling_bounds_follow_the_engines_there_are() -> None:
    plain = of_cluster({**CLUSTER, "spec": {"engine": {"replicas": 3}}})
    expected = Scaled(namespace="x", name="demo", least=1, most=6, target_percent=80, scale_in_s=300)
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
    # What the query asks for beside the labels that Prometheus adds.
    asked = set(re.findall(r'(\w+)!?="', query(of_cluster(CLUSTER))))
    assert asked == {"namespace", "app_kubernetes_io_instance", "signal"}
    assert "podTargetLabels: [app.kubernetes.io/instance]" in (CHART / "templates/monitors.yaml").read_text()
