"""etcd members find each other by the names that their Service gives them."""

from __future__ import annotations

import pytest
from agentserving_operator.manifests.etcd_statefulset import etcd_statefulset
from agentserving_operator.manifests.services import etcd_services
from support.operator_objects import make_cluster, only_container


@pytest.mark.parametrize("members", [1, 3])
def test_every_member_knows_all_members(members: int) -> None:
    cluster = make_cluster(store={"etcd": {"members": members, "quotaMiB": 100}})
    made = etcd_statefulset(cluster)
    arguments = dict(each.split("=", 1) for each in only_container(made)["args"])
    listed = dict(each.split("=", 1) for each in arguments["--initial-cluster"].split(","))
    peers = etcd_services(cluster)[1]["metadata"]["name"]
    assert made["spec"]["serviceName"] == peers
    assert listed == {f"demo-etcd-{i}": f"http://demo-etcd-{i}.{peers}.ns.svc:2380" for i in range(members)}
    assert arguments["--initial-advertise-peer-urls"] == f"http://$(POD_NAME).{peers}.ns.svc:2380"
    assert arguments["--quota-backend-bytes"] == str(100 << 20)
    assert made["spec"]["replicas"] == members


def test_its_volume_is_of_the_size_and_class_asked_for() -> None:
    (claim,) = etcd_statefulset(make_cluster(store={"etcd": {"size": "3Gi", "storageClassName": "ssd"}}))["spec"][
        "volumeClaimTemplates"
    ]
    assert claim["spec"]["resources"] == {"requests": {"storage": "3Gi"}}
    assert claim["spec"]["storageClassName"] == "ssd"
