"""Nodes can be drained, one pod of a part at a time."""

from __future__ import annotations

from agentserving_operator.manifests import Component
from agentserving_operator.manifests.common import selector
from agentserving_operator.manifests.disruption_budgets import disruption_budget
from support.operator_objects import make_cluster


def test_a_single_pod_may_be_evicted() -> None:
    spec = disruption_budget(make_cluster(), Component.ETCD)["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["selector"] == {"matchLabels": selector("demo", Component.ETCD)}
