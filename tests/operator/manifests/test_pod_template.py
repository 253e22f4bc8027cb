"""Users' pod templates: merged by Kubernetes' rules, and refused where the cluster's parts rely on ours."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.manifests import AgentServingCluster, Manifest, desired
from agentserving_operator.spec.parsing import SpecError
from hypothesis import given
from hypothesis import strategies as st
from support.operator_objects import make_cluster, pod_spec

PARTS = {
    "engine": ("demo-engine", "engine"),
    "controlPlane": ("demo-control-plane", "control-plane"),
    "gateway": ("demo-gateway", "gateway"),
    "store": ("demo-etcd", "etcd"),
}
ENTRIES = {"containers": "name", "initContainers": "name", "volumes": "name"}


def cluster_with(part: str, template: dict[str, Any]) -> AgentServingCluster:
    inner: dict[str, Any] = {"template": template}
    return make_cluster(**{part: {"etcd": inner} if part == "store" else inner})


def workload(cluster: AgentServingCluster, name: str) -> Manifest:
    (found,) = [
        each
        for each in desired(cluster)
        if each["kind"] in ("Deployment", "StatefulSet") and each["metadata"]["name"] == name
    ]
    return found


def container_of(manifest: Manifest, name: str) -> Manifest:
    spec = pod_spec(manifest)
    (found,) = [each for each in [*spec["containers"], *spec.get("initContainers", [])] if each["name"] == name]
    return dict(found)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_a_template_and_keeps_what_it_has(part: str) -> None:
    name, main = PARTS[part]
    before = workload(make_cluster(), name)
    template = {
        "metadata": {"labels": {"team": "agents"}, "annotations": {"example.com/cost": "1"}},
        "spec": {
            "priorityClassName": "inference",
            "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "containers": [
                {
                    "name": main,
                    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                    "envFrom": [{"configMapRef": {"name": "proxy"}}],
                    "volumeMounts": [{"name": "ca", "mountPath": "/etc/company"}],
                    "resources": {"limits": {"cpu": 2}},
                },
                {"name": "logs", "image": "logs:1"},
            ],
        },
    }
    after = workload(cluster_with(part, template), name)
    labels = before["spec"]["template"]["metadata"]["labels"]
    assert after["spec"]["template"]["metadata"]["labels"] == {**labels, "team": "agents"}
    assert after["spec"]["selector"] == before["spec"]["selector"]
    assert pod_spec(after)["priorityClassName"] == "inference"
    assert {"name": "ca", "configMap": {"name": "ca"}} in pod_spec(after)["volumes"]
    ours, merged = container_of(before, main), container_of(after, main)
    assert merged["env"] == [*ours.get("env", []), {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    assert merged["envFrom"] == [{"configMapRef": {"name": "proxy"}}]
    assert merged["volumeMounts"] == [*ours["volumeMounts"], {"name": "ca", "mountPath": "/etc/company"}]
    assert merged["resources"]["requests"] == ours["resources"]["requests"]
    assert merged["resources"]["limits"]["cpu"] == 2
    assert container_of(after, "logs") == {"name": "logs", "image": "logs:1"}
    for field in ("image", "command", "args", "ports", "securityContext"):
        assert merged.get(field) == ours.get(field)


def test_without_a_template_nothing_changes_and_an_empty_one_is_none() -> None:
    assert desired(cluster_with("engine", {})) == desired(make_cluster())
    assert desired(cluster_with("gateway", {"spec": {}})) == desired(make_cluster())


def test_objects_are_merged_and_lists_without_keys_replaced() -> None:
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
    template = {"spec": {"affinity": {"podAntiAffinity": rule}, "tolerations": [{"operator": "Exists"}]}}
    spec = pod_spec(workload(cluster_with("engine", template), "demo-engine"))
    assert spec["affinity"]["podAntiAffinity"] == rule
    assert "nodeAffinity" in spec["affinity"]
    assert spec["tolerations"] == [{"operator": "Exists"}]


def test_times_of_probes_can_be_set_and_handlers_stay() -> None:
    template = {"spec": {"containers": [{"name": "engine", "startupProbe": {"failureThreshold": 9000}}]}}
    ours = container_of(workload(make_cluster(), "demo-engine"), "engine")["startupProbe"]
    merged = container_of(workload(cluster_with("engine", template), "demo-engine"), "engine")["startupProbe"]
    assert merged == {**ours, "failureThreshold": 9000}


def test_the_native_sidecar_and_further_init_containers() -> None:
    fetch = {"name": "fetch", "image": "fetch:1", "command": ["fetch"]}
    template = {"spec": {"initContainers": [{"name": "sidecar", "env": [{"name": "A", "value": "1"}]}, fetch]}}
    manifest = workload(cluster_with("engine", template), "demo-engine")
    assert {"name": "A", "value": "1"} in container_of(manifest, "sidecar")["env"]
    assert pod_spec(manifest)["initContainers"][-1] == fetch


def test_pods_in_the_nodes_network_still_find_services() -> None:
    spec = pod_spec(workload(cluster_with("engine", {"spec": {"hostNetwork": True}}), "demo-engine"))
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    given = {"spec": {"hostNetwork": True, "dnsPolicy": "Default"}}
    assert pod_spec(workload(cluster_with("engine", given), "demo-engine"))["dnsPolicy"] == "Default"


def engine(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "engine", **fields}]}}


REFUSED = {
    "label": ({"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}, "metadata.labels[app.kubernetes.io/name]"),
    "our domain": (
        {"metadata": {"annotations": {"agentserving.io/x": "y"}}},
        "metadata.annotations[agentserving.io/x]",
    ),
    "image": (engine(image="x"), "spec.containers[engine].image"),
    "command": (engine(command=["sh"]), "spec.containers[engine].command"),
    "ports": (engine(ports=[]), "spec.containers[engine].ports"),
    "lifecycle": (engine(lifecycle={}), "spec.containers[engine].lifecycle"),
    "unknown": (engine(stdin=True), "spec.containers[engine].stdin"),
    "variable": (engine(env=[{"name": "POD_NAME", "value": "x"}]), "spec.containers[engine].env[POD_NAME]"),
    "mount": (engine(volumeMounts=[{"mountPath": "/tmp"}]), "spec.containers[engine].volumeMounts[/tmp]"),
    "not a list": (engine(env="A=1"), "spec.containers[engine].env"),
    "not an object": (engine(env=["A=1"]), "spec.containers[engine].env[0]"),
    "handler": (engine(livenessProbe={"exec": {}}), "spec.containers[engine].livenessProbe.exec"),
    "volume": ({"spec": {"volumes": [{"name": "tmp"}]}}, "spec.volumes[tmp]"),
    "wrong list": ({"spec": {"containers": [{"name": "sidecar"}]}}, "spec.containers[sidecar]"),
}


@pytest.mark.parametrize(("template", "field"), REFUSED.values(), ids=REFUSED)
def test_what_the_parts_rely_on_is_refused_with_the_field(template: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as error:
        desired(cluster_with("engine", template))
    assert error.value.field == f"spec.engine.template.{field}"


@pytest.mark.parametrize("field", ["restartPolicy", "terminationGracePeriodSeconds", "hostname", "nodeName"])
def test_fields_that_are_not_open_are_unknown(field: str) -> None:
    with pytest.raises(SpecError, match=f"spec.engine.template.spec.{field}: no such field"):
        cluster_with("engine", {"spec": {field: "x"}})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"volumes": [{"emptyDir": {}}]}, r"volumes\[0\].name: is required"),
        ({"volumes": [{"name": "a"}, {"name": "a"}]}, r"volumes\[1\]: appears twice: a"),
        ({"volumes": "a"}, "volumes: must be a list"),
        ({"affinity": []}, "affinity: must be an object"),
    ],
)
def test_lists_are_checked_as_the_api_server_checks_them(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        cluster_with("engine", {"spec": spec})


variables = st.dictionaries(st.sampled_from(["A", "B", "POD_NAME"]), st.sampled_from(["", "x"]), max_size=3)
containers = st.dictionaries(
    st.sampled_from(["engine", "sidecar", "extra", "more"]),
    st.tuples(variables, st.sampled_from([{}, {"image": "i"}, {"resources": {}}])),
    max_size=3,
)


def as_list(drawn: dict[str, tuple[dict[str, str], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "env": [{"name": key, "value": value} for key, value in env.items()], **rest}
        for name, (env, rest) in drawn.items()
    ]


@given(containers=containers, init_containers=containers)
def test_any_template_is_refused_or_keeps_every_entry_of_ours(
    containers: dict[str, Any], init_containers: dict[str, Any]
) -> None:
    ours = pod_spec(workload(make_cluster(), "demo-engine"))
    template = {"spec": {"containers": as_list(containers), "initContainers": as_list(init_containers)}}
    try:
        merged = pod_spec(workload(cluster_with("engine", template), "demo-engine"))
    except SpecError as error:
        assert error.field.startswith("spec.engine.template.spec.")  # noqa: PT017
        return
    for field, key in ENTRIES.items():
        assert [each[key] for each in merged[field]][: len(ours[field])] == [each[key] for each in ours[field]]
        for mine, found in zip(ours[field], merged[field], strict=False):
            for part in ("image", "command", "args", "ports", "lifecycle"):
                assert found.get(part) == mine.get(part)
            assert found.get("env", [])[: len(mine.get("env", []))] == mine.get("env", [])
