"""What autoscaling changes about the objects of a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agentserving_operator.manifests import AgentServingCluster
from agentserving_operator.manifests.certificate_objects import engine_leaves
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_operator.scaling.plan import Range
from support.operator_objects import make_cluster, pod_spec


def scaled(replicas: int = 1, **autoscaling: Any) -> AgentServingCluster:
    return make_cluster(engine={"replicas": replicas, "autoscaling": {"max": 4, **autoscaling}})


def held_s(cluster: AgentServingCluster) -> list[str]:
    """How long Envoy and the picker let calls wait."""
    commands = [each["args"] for each in pod_spec(gateway_deployment(cluster))["containers"]]
    return [words[words.index("--hold-s") + 1] for words in commands if "--hold-s" in words]


def test_the_statefulset_has_the_ordinals_that_the_scaler_wants() -> None:
    spec = engine_statefulset(replace(scaled(), engine_range=Range(2, 3)))["spec"]
    assert (spec["ordinals"], spec["replicas"]) == ({"start": 2}, 3)
    # Without autoscaling it is as ever.
    plain = engine_statefulset(make_cluster(engine={"replicas": 2}))["spec"]
    assert (plain.get("ordinals"), plain["replicas"]) == (None, 2)


def test_both_containers_of_a_gateway_hold_calls_where_there_may_be_no_engine() -> None:
    assert held_s(scaled(min=0, holdSeconds=60)) == ["60", "60"]
    assert held_s(scaled(min=1)) == held_s(make_cluster()) == []


def test_engines_that_may_come_have_their_certificates_before_they_start() -> None:
    assert sorted(engine_leaves(scaled())) == [f"demo-engine-{each}" for each in range(4)]
    # More than the maximum may be there, from before it was lowered.
    assert len(engine_leaves(scaled(replicas=6))) == 6
