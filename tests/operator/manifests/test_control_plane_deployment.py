"""The control plane's pod starts the real control plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentserving.contract.budgets import Budget
from agentserving_controlplane.settings import Settings, parse
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.engine_pod import KEY_FILE
from support.operator_objects import make_cluster, only_container, pod_spec


def settings(tmp_path: Path, **spec: Any) -> Settings:
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef")
    one = only_container(control_plane_deployment(make_cluster(**spec)))
    assert one["command"] == ["python", "-m", "agentserving_controlplane"]
    return parse([str(key) if each == KEY_FILE else each for each in one["args"]])


@pytest.mark.parametrize(
    ("store", "endpoints", "prefix"),
    [
        ({}, ("demo-etcd-0.demo-etcd-peers.ns.svc:2379",), "/agentserving/ns/demo"),
        (
            {"etcd": {"members": 3}},
            tuple(f"demo-etcd-{i}.demo-etcd-peers.ns.svc:2379" for i in range(3)),
            "/agentserving/ns/demo",
        ),
        ({"type": "ExternalEtcd", "external": {"endpoints": ["a:1", "b:2"], "prefix": "/x"}}, ("a:1", "b:2"), "/x"),
    ],
)
def test_its_store_arguments_name_the_etcd(
    tmp_path: Path, store: dict[str, Any], endpoints: tuple[str, ...], prefix: str
) -> None:
    found = settings(tmp_path, store=store).store
    assert (found.store, found.etcd_endpoints, found.etcd_prefix) == ("etcd", endpoints, prefix)


def test_a_table_in_memory_needs_no_etcd(tmp_path: Path) -> None:
    assert settings(tmp_path, store={"type": "Memory"}).store.store == "memory"


def test_it_listens_for_other_pods(tmp_path: Path) -> None:
    found = settings(tmp_path, controlPlane={"programIdleSeconds": 42})
    assert (found.serving.listen, found.probes.http_host, found.probes.http_port) == ("0.0.0.0:7070", "0.0.0.0", 7080)
    assert found.plane.program_idle_s == 42
    assert not found.plane.default_budget


def test_it_knows_the_budget_of_programs_without_one(tmp_path: Path) -> None:
    budget = {"tokens": 2_000_000, "engineSeconds": 300}
    found = settings(tmp_path, controlPlane={"programBudget": budget}).plane.default_budget
    assert found == Budget(tokens=2_000_000, engine_us=300_000_000)


def test_it_serves_framed_streams_and_names_its_pod_as_their_address(tmp_path: Path) -> None:
    found = settings(tmp_path).serving
    assert found.streams_listen == "0.0.0.0:7076"
    assert found.streams_address(7076) == "$(POD_IP):7076"


@pytest.mark.parametrize("client", [True, False])
def test_an_external_etcd_may_require_certificates(tmp_path: Path, client: bool) -> None:
    external = {"endpoints": ["a:1"], "tlsSecretName": "tls", "clientCertificate": client}
    store = {"type": "ExternalEtcd", "external": external}
    found = settings(tmp_path, store=store).store
    assert found.etcd_tls_ca == "/etc/agentserving/etcd-tls/ca.crt"
    assert bool(found.etcd_tls_cert) is bool(found.etcd_tls_key) is client
    names = [volume["name"] for volume in pod_spec(control_plane_deployment(make_cluster(store=store)))["volumes"]]
    assert "etcd-tls" in names


def test_a_new_control_plane_starts_before_an_old_one_ends() -> None:
    for replicas in (1, 3):
        spec = control_plane_deployment(make_cluster(controlPlane={"replicas": replicas}))["spec"]
        assert spec["replicas"] == replicas
        assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_two_tables_in_memory_never_coexist() -> None:
    spec = control_plane_deployment(make_cluster(store={"type": "Memory"}))["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_followers_name_the_leader_by_its_pods_address(tmp_path: Path) -> None:
    one = only_container(control_plane_deployment(make_cluster(controlPlane={"replicas": 2})))
    assert {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}} in one["env"]
    assert settings(tmp_path, controlPlane={"replicas": 2}).serving.advertise == "$(POD_IP):7070"


def test_the_lease_is_short_where_a_follower_can_take_over(tmp_path: Path) -> None:
    assert settings(tmp_path, controlPlane={"replicas": 2}).store.lease_s == 5
    assert settings(tmp_path).store.lease_s == 30


def test_replicas_spread_over_nodes() -> None:
    (constraint,) = pod_spec(control_plane_deployment(make_cluster()))["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "kubernetes.io/hostname"
    assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
