"""The chart matches the operator: its rights, its settings, the metrics and the ports that it names."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import agentserving
import jsonschema
import pytest
import yaml
from agentserving_operator.__main__ import PREFIX, Settings
from agentserving_operator.api_server import CHILD_KINDS, PATHS
from agentserving_operator.manifests import Component, desired
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.network_policies import network_policy
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.crd import API_VERSION, KIND
from agentserving_operator.spec.parsing import parse
from agentserving_process import options
from support.network_policies import Host, is_peer
from support.operator_objects import make_cluster, only_container, pod_spec

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/agentserving"


def rules() -> set[tuple[str, str, str]]:
    found = yaml.safe_load((CHART / "files/operator-rules.yaml").read_text())
    return {(g, r, v) for rule in found for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("cluster-*.yaml")), ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    assert (found["apiVersion"], found["kind"], found["metadata"]["name"]) == (API_VERSION, KIND, "demo")
    parse(ClusterSpec, found["spec"])


def test_the_notes_show_the_example_and_the_commands_of_the_readme() -> None:
    name = "cluster-simulator.yaml"
    assert (CHART / "files" / name).read_text() == (ROOT / "examples" / name).read_text()
    notes = (CHART / "templates/NOTES.txt").read_text()
    commands = [line.split("  #")[0].strip() for line in notes.splitlines() if line.startswith("    ")]
    assert commands == [
        "helm install agentserving charts/agentserving -n agentserving --create-namespace --wait",
        f"kubectl apply -f examples/{name}",
        "kubectl wait --for=condition=Ready asc/demo --timeout=5m",
        "export OPENAI_API_KEY=$(kubectl agentserving key create default --for me)",
        "kubectl port-forward svc/demo-gateway 8080:80",
        "kubectl agentserving top",
        "kubectl -n {{ .Release.Namespace }} create secret generic {{ .Values.test.keySecret }} "
        "--from-literal=key=$OPENAI_API_KEY",
    ]
    readme = (ROOT / "README.md").read_text()
    assert all(command in readme for command in commands[:-1])


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def test_values_and_their_schema_have_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.validate(values(), schema)
    assert set(schema["properties"]) - {"global"} == set(values())


@pytest.mark.parametrize(
    "wrong", [{"image": {"repository": "a", "tag": "latest"}}, {"roundSeconds": 0}, {"namespace": "x"}]
)
def test_invalid_values_are_refused(wrong: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values(), **wrong}, schema)


def test_the_operator_has_the_rights_to_write_every_kind_that_it_creates() -> None:
    for kind in CHILD_KINDS:
        prefix, plural = PATHS[kind]
        group = prefix.split("/")[2] if prefix.startswith("/apis/") else ""
        assert {(group, plural, verb) for verb in ("get", "list", "create", "patch", "delete")} <= rules()


def test_no_right_is_a_wildcard_and_secrets_are_never_listed() -> None:
    assert not [rule for rule in rules() if "*" in rule]
    assert {verb for _, resource, verb in rules() if resource == "secrets"} == {"get", "create", "patch"}


def test_the_deployment_sets_variables_that_the_operator_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "41").write_text("a token")
    lines = (CHART / "templates/deployment.yaml").read_text().splitlines()
    names = [line.split("name: ")[1] for line in lines if f"name: {PREFIX}_" in line]
    environment = {name: "41/41" if name.endswith("LEASE") else "41" for name in names}
    given = options.parse(Settings, prog="test", argv=[], environment=environment, prefix=PREFIX)
    values = {**vars_of(given), **vars_of(given.images), **vars_of(given.probes)}
    for name in names:
        read = values[name.removeprefix(f"{PREFIX}_").lower()]
        assert read in ("41", 41.0, ("41",), "41/41", Path("41")), name


def vars_of(topic: Any) -> dict[str, Any]:
    return {field.name: getattr(topic, field.name) for field in dataclasses.fields(topic)}


def exported() -> set[str]:
    """Metric names in the code, as Prometheus shows them: counters end in _total, histograms have buckets."""
    names: set[str] = set()
    for root in ("process", "controlplane", "gateway", "cli", "engine-image", "simulator", "operator"):
        for path in (ROOT / root).rglob("*.py"):
            names |= set(re.findall(r'"(agentserving_[a-z_]+)"', path.read_text()))
    # Names that code composes: the sidecar's fields of the engine's load, and the control plane's counts.
    names |= {f"agentserving_engine_{name}" for name in re.findall(r'_Field\("([a-z_]+)"', SIDECAR.read_text())}
    for path in (ROOT / "controlplane").rglob("*.py"):
        found = re.findall(r'"((?:programs|calls)_[a-z]+)":', path.read_text())
        names |= {f"agentserving_{name}" for name in found}
    return names | {f"{name}_total" for name in names} | {f"{name}_bucket" for name in names}


SIDECAR = ROOT / "engine-image/agentserving_sidecar/metrics.py"


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_alerts_and_dashboard_use_metrics_that_exist(name: str) -> None:
    asked = set(re.findall(r"\bagentserving_[a-z_]+", (CHART / "files" / name).read_text()))
    assert asked
    assert asked <= exported()


def test_each_alert_has_a_section_of_the_runbook_and_each_section_an_alert() -> None:
    rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(alert["alert"] for alert in alerts)
    for alert in alerts:
        assert alert["annotations"]["runbook"] == f"runbook/#{alert['alert'].lower()}"


def test_monitors_name_ports_that_the_pods_have_and_that_are_open_to_prometheus() -> None:
    monitored = re.findall(r'"([a-z-]+)" \(list ([^)]*)\)', (CHART / "templates/monitors.yaml").read_text())
    # vLLM's own processes on further nodes of an engine serve no metrics.
    assert {component for component, _ in monitored} == {each.value for each in Component} - {"engine-worker"}
    workloads = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: pod_spec(each)
        for each in desired(make_cluster(store={"type": "Etcd"}, batches={"enabled": True}))
        if each["kind"] in ("Deployment", "StatefulSet")
    }
    for component, ports in monitored:
        pod = workloads[component]
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        numbers = {port["name"]: port["containerPort"] for one in containers for port in one.get("ports", [])}
        names = re.findall(r'"([a-z-]+)"', ports)
        assert set(names) <= numbers.keys(), component
        assert {numbers[name] for name in names} <= open_to_prometheus(component), component


def open_to_prometheus(component: str) -> set[int]:
    """Ports of a component that its NetworkPolicy opens to pods of namespace `monitoring`."""
    policy = network_policy(make_cluster(), Component(component))
    prometheus = Host(name="prometheus", address="10.0.0.1", namespace="monitoring")
    rules = policy["spec"]["ingress"]
    peers = {port["port"]: rule.get("from") for rule in rules for port in rule["ports"]}

    def is_open(those: list[Any] | None) -> bool:
        return those is None or any(is_peer(each, prometheus, "ns") for each in those)

    return {number for number, those in peers.items() if is_open(those)}


def test_the_engines_calls_are_not_open_to_prometheus() -> None:
    """vLLM's metrics are on the same port, so Prometheus gets them from the sidecar."""
    assert Port.ENGINE not in open_to_prometheus("engine")
    assert "path: /engine/metrics" in (CHART / "templates/monitors.yaml").read_text()


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == agentserving.__version__


def helm(*flags: str) -> list[dict[str, Any]]:
    """The objects that the chart renders. ValueError with helm's message when it refuses."""
    argv = ["helm", "template", "release", str(CHART), "--namespace", "ops", "--kube-version", "1.35.0", *flags]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each]


needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="no helm on PATH; make e2e brings one")
PROMETHEUS = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor,monitoring.coreos.com/v1/PrometheusRule")


def kinds(made: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(each["kind"] for each in made))


@needs_helm
def test_the_default_is_an_operator_with_its_rights_and_a_crd_that_is_kept_at_uninstall() -> None:
    made = helm()
    assert kinds(made) == {
        "CustomResourceDefinition": 2, "ServiceAccount": 1, "ClusterRole": 3, "ClusterRoleBinding": 1, "Role": 1,
        "RoleBinding": 1, "Lease": 1, "Deployment": 1, "Pod": 1,
    }  # fmt: skip
    crds = {each["metadata"]["name"]: each for each in made if each["kind"] == "CustomResourceDefinition"}
    assert crds.keys() == {"agentservingclusters.agentserving.io", "agentservingtenants.agentserving.io"}
    assert {each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in crds.values()} == {"keep"}
    for name, crd in crds.items():
        source = yaml.safe_load((CHART / f"files/{name.partition('.')[0]}.yaml").read_text())
        assert crd["spec"] == source["spec"]


@needs_helm
def test_an_operator_of_some_namespaces_has_rights_only_there() -> None:
    made = helm("--set", "namespaces={a,b}", "--set", "crds.enabled=false")
    assert kinds(made) == {
        "ServiceAccount": 1, "Role": 3, "RoleBinding": 3, "Lease": 1, "Deployment": 1, "Pod": 1
    }  # fmt: skip
    # And in its own, for its Lease.
    assert {each["metadata"]["namespace"] for each in made if each["kind"] == "Role"} == {"a", "b", "ops"}


@needs_helm
@pytest.mark.parametrize(("replicas", "strategy"), [(1, "Recreate"), (2, "RollingUpdate")])
def test_every_release_has_a_lease_by_which_others_know_that_it_works(replicas: int, strategy: str) -> None:
    made = helm("--set", f"replicas={replicas}")
    (lease,) = (each["metadata"] for each in made if each["kind"] == "Lease")
    (role,) = (each for each in made if each["kind"] == "Role")
    assert role["rules"][0]["resourceNames"] == [lease["name"]]
    (deployment,) = (each for each in made if each["kind"] == "Deployment")
    env = {each["name"]: each["value"] for each in only_container(deployment)["env"]}
    assert env["AGENTSERVING_OPERATOR_LEASE"] == f"{lease['namespace']}/{lease['name']}"
    assert deployment["spec"]["strategy"]["type"] == strategy


@needs_helm
def test_monitors_are_rendered_if_prometheus_is_installed() -> None:
    extras = ("--set", "monitoring.rules=true", "--set", "monitoring.dashboard=true")
    assert "PodMonitor" not in kinds(helm(*extras))
    made = helm(*extras, *PROMETHEUS)
    found = kinds(made)
    assert (found["PodMonitor"], found["PrometheusRule"], found["ConfigMap"]) == (6, 1, 1)
    (board,) = (each for each in made if each["kind"] == "ConfigMap")
    assert json.loads(board["data"]["agentserving.json"])["panels"]
    (rule,) = (each for each in made if each["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text()), "labels are no templates"


@needs_helm
def test_prometheus_sends_the_token_that_the_operator_and_the_clusters_ask_for() -> None:
    made = helm("--set", "monitoring.tokenSecret=scraper", *PROMETHEUS)
    endpoints = [end for each in made if each["kind"] == "PodMonitor" for end in each["spec"]["podMetricsEndpoints"]]
    asked = {"type": "Bearer", "credentials": {"name": "scraper", "key": "token"}}
    assert [each["authorization"] for each in endpoints] == [asked] * 8
    (deployment,) = (each for each in made if each["kind"] == "Deployment")
    one = only_container(deployment)
    (file,) = (e["value"] for e in one["env"] if e["name"] == "AGENTSERVING_OPERATOR_METRICS_TOKEN_FILE")
    assert file.rpartition("/")[0] in {each["mountPath"] for each in one["volumeMounts"]}
    assert "authorization" not in str([each for each in helm(*PROMETHEUS) if each["kind"] == "PodMonitor"])


@needs_helm
def test_the_helm_test_calls_the_configured_cluster() -> None:
    made = helm("--set", "test.cluster=mine", "--set", "test.namespace=theirs")
    (pod,) = (each for each in made if each["kind"] == "Pod")
    assert pod["spec"]["containers"][0]["command"][-1] == "http://mine-gateway.theirs.svc/v1"
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "volumes" not in pod["spec"]


@needs_helm
def test_the_helm_test_calls_a_gateway_with_a_certificate_of_a_ca_that_it_is_given() -> None:
    made = helm("--set", "test.tls=true", "--set", "test.caSecret=front-ca")
    (pod,) = (each for each in made if each["kind"] == "Pod")
    (one,) = pod["spec"]["containers"]
    assert one["command"][-1] == "https://demo-gateway.default.svc/v1"
    (file,) = (each["value"] for each in one["env"] if each["name"] == "SSL_CERT_FILE")
    (mount,) = one["volumeMounts"]
    assert file == f"{mount['mountPath']}/ca.crt"
    (volume,) = pod["spec"]["volumes"]
    assert (volume["name"], volume["secret"]["secretName"]) == (mount["name"], "front-ca")


@needs_helm
@pytest.mark.parametrize(
    ("flag", "message"),
    [("image.tag=latest", "tag"), ("test.cluster=", "cluster"), ("monitoring.interval=soon", "interval")],
)
def test_helm_refuses_invalid_values_by_name(flag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        helm("--set", flag)


@needs_helm
def test_every_image_may_be_required_to_have_a_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    with pytest.raises(ValueError, match=r"etcdImage\.digest is empty"):
        helm("--set", "requireDigests=true", "--set", f"image.digest={digest}", "--set", f"engineImage.digest={digest}")
    pinned = [word for name in ("image", "engineImage", "etcdImage") for word in ("--set", f"{name}.digest={digest}")]
    made = helm("--set", "requireDigests=true", *pinned)
    (deployment,) = (each for each in made if each["kind"] == "Deployment")
    one = only_container(deployment)
    images = [each["value"] for each in one["env"] if each["name"].endswith("_IMAGE")]
    assert [image.partition("@")[2] for image in (*images, one["image"])] == [digest] * 4
