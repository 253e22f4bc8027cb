"""Members of etcd find each other by DNS, and one of several can join again. test_etcd_member runs them for real."""

from __future__ import annotations

import pytest
from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.etcd_statefulset import CONFIG_FILE, DATA_DIR, etcd_statefulset
from agentserving_operator.manifests.services import etcd_services
from support.operator_objects import make_cluster, only_container, pod_spec


def flags_of(statefulset: Manifest) -> dict[str, str]:
    """etcd's flags: of its container, or of the init container that writes its configuration file."""
    (one,) = pod_spec(statefulset).get("initContainers") or [only_container(statefulset)]
    return dict(each.partition("=")[::2] for each in one["args"])


@pytest.mark.parametrize(("issuer", "scheme"), [("None", "http"), ("Operator", "https")])
@pytest.mark.parametrize("members", [1, 3])
def test_every_member_knows_all_members(members: int, issuer: str, scheme: str) -> None:
    cluster = make_cluster(store={"etcd": {"members": members, "quotaMiB": 100}}, tls={"issuer": issuer})
    made = etcd_statefulset(cluster)
    arguments = flags_of(made)
    listed = dict(each.split("=", 1) for each in arguments["--initial-cluster"].split(","))
    peers = etcd_services(cluster)[1]["metadata"]["name"]
    assert made["spec"]["serviceName"] == peers
    assert listed == {f"demo-etcd-{i}": f"{scheme}://demo-etcd-{i}.{peers}.ns.svc:2380" for i in range(members)}
    assert arguments["--initial-advertise-peer-urls"] == f"{scheme}://$(POD_NAME).{peers}.ns.svc:2380"
    assert arguments["--quota-backend-bytes"] == str(100 << 20)
    assert made["spec"]["replicas"] == members


def test_volumes_have_the_requested_size_and_class() -> None:
    (claim,) = etcd_statefulset(make_cluster(store={"etcd": {"size": "3Gi", "storageClassName": "ssd"}}))["spec"][
        "volumeClaimTemplates"
    ]
    assert claim["spec"]["resources"] == {"requests": {"storage": "3Gi"}}
    assert claim["spec"]["storageClassName"] == "ssd"


def test_a_member_of_three_starts_from_the_file_that_its_init_container_writes() -> None:
    made = etcd_statefulset(make_cluster(store={"etcd": {"members": 3}}))
    (join,) = pod_spec(made)["initContainers"]
    etcd = only_container(made)
    assert join["args"][:2] == ["--config-file", CONFIG_FILE]
    assert etcd["args"] == [f"--config-file={CONFIG_FILE}"]
    shared = {each["mountPath"]: each["name"] for each in etcd["volumeMounts"]}
    assert shared.items() <= {each["mountPath"]: each["name"] for each in join["volumeMounts"]}.items()
    assert shared[DATA_DIR] == "data"


def test_a_single_member_has_no_init_container() -> None:
    assert "initContainers" not in pod_spec(etcd_statefulset(make_cluster()))


@pytest.mark.parametrize("members", [1, 3])
def test_old_revisions_are_compacted_and_the_database_has_a_quota(members: int) -> None:
    flags = flags_of(etcd_statefulset(make_cluster(store={"etcd": {"members": members}})))
    assert (flags["--auto-compaction-mode"], flags["--auto-compaction-retention"]) == ("periodic", "5m")
    assert int(flags["--quota-backend-bytes"]) == 2048 << 20


@pytest.mark.parametrize("quota", [64, 4096])
def test_the_control_plane_knows_the_quota_of_an_etcd_that_does_not_say_it(quota: int) -> None:
    cluster = make_cluster(store={"etcd": {"quotaMiB": quota}}, auth={"clients": "None"}, tls={"issuer": "None"})
    arguments = only_container(control_plane_deployment(cluster))["args"]
    assert arguments[arguments.index("--etcd-quota-bytes") + 1] == str(quota << 20)
    external = make_cluster(store={"type": "ExternalEtcd", "external": {"endpoints": ["a:2379"]}})
    assert "--etcd-quota-bytes" not in only_container(control_plane_deployment(external))["args"]
