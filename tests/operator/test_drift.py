"""Drift is a difference in what we set. What the API server, webhooks and people add is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from agentserving_operator.manifests import desired
from agentserving_operator.observe.drift import matches
from agentserving_operator.observe.settled import Settled
from support.operator_objects import make_cluster


@pytest.mark.parametrize(
    ("desired", "live"),
    [
        ({"a": 1}, {"a": 1, "defaulted": True}),
        ({"a": {}}, {}),
        ({"a": []}, {}),
        ({"a": False}, {}),
        ({"limits": {"cpu": "1000m"}}, {"limits": {"cpu": "1"}}),
        ({"requests": {"memory": "1024Mi"}}, {"requests": {"memory": "1Gi"}}),
        ({"requests": {"memory": "1.5Gi"}}, {"requests": {"memory": "1536Mi"}}),
        ({"requests": {"cpu": "0.1"}}, {"requests": {"cpu": "100m"}}),
        ({"limits": {"nvidia.com/gpu": "1"}}, {"limits": {"nvidia.com/gpu": 1}}),
        ({"emptyDir": {"sizeLimit": "1024Mi"}}, {"emptyDir": {"sizeLimit": "1Gi"}}),
        ([{"name": "a"}], [{"name": "a", "protocol": "TCP"}]),
        ({"a": {}}, {"a": {}}),
    ],
)
def test_defaults_and_other_spellings_are_no_drift(desired: Any, live: Any) -> None:
    assert matches(desired, live)


@pytest.mark.parametrize(
    ("desired", "live"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({"a": {"b": 1}}, {}),
        ({"a": True}, {}),
        ({"a": 1}, {"a": True}),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1Gi"}}),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "many"}}),
        # Not quantities, though they look like some.
        ({"env": [{"name": "a", "value": "1000m"}]}, {"env": [{"name": "a", "value": "1"}]}),
        ({"image": "1000m"}, {"image": "1"}),
        ({"image": "a:1"}, {"image": "a:2"}),
        ({"a": "x"}, {"a": ["x"]}),
        (["x"], "x"),
    ],
)
def test_a_field_of_ours_that_differs_is_drift(desired: Any, live: Any) -> None:
    assert not matches(desired, live)


def manifest(kind: str, name: str) -> Any:
    tls = {"issuer": "Operator"}
    cluster = make_cluster(tls=tls, store={"etcd": {"members": 3}})
    (found,) = (each for each in desired(cluster) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def pod(live: Any) -> Any:
    return live["spec"]["template"]["spec"]


def engine(live: Any) -> Any:
    return pod(live)["containers"][0]


def secret_volume(live: Any) -> Any:
    return next(each["secret"] for each in pod(live)["volumes"] if "secret" in each)


Change = Callable[[Any], object]
# What others add to the StatefulSet of the engines.
ADDITIONS: dict[str, Change] = {
    "a variable": lambda live: engine(live)["env"].append({"name": "HTTP_PROXY", "value": "x"}),
    "a variable in front": lambda live: engine(live)["env"].insert(0, {"name": "HTTP_PROXY", "value": "x"}),
    "a toleration": lambda live: pod(live)["tolerations"].append({"key": "spot", "operator": "Exists"}),
    "a toleration's default": lambda live: pod(live)["tolerations"][0].update(tolerationSeconds=60),
    "a sidecar": lambda live: pod(live)["containers"].append({"name": "mesh", "image": "mesh:1"}),
    "a sidecar in front": lambda live: pod(live)["containers"].insert(0, {"name": "mesh", "image": "mesh:1"}),
    "an init container": lambda live: pod(live)["initContainers"].insert(0, {"name": "mesh", "image": "mesh:1"}),
    "a volume": lambda live: pod(live)["volumes"].append({"name": "certs", "emptyDir": {}}),
    "a mount": lambda live: engine(live)["volumeMounts"].append({"name": "certs", "mountPath": "/certs"}),
    "a port": lambda live: engine(live)["ports"].append({"name": "debug", "containerPort": 5678, "protocol": "TCP"}),
    "a pull secret": lambda live: pod(live).update(imagePullSecrets=[{"name": "mirror"}]),
    "a field": lambda live: pod(live).update(priorityClassName="high", nodeSelector={"zone": "a"}),
    "a label and an annotation": lambda live: live["metadata"].update(
        labels={**live["metadata"]["labels"], "x": "y"}, annotations={**live["metadata"]["annotations"], "x": "y"}
    ),
    "another order": lambda live: (engine(live)["env"].reverse(), pod(live)["volumes"].reverse()),
    "an owner": lambda live: live["metadata"]["ownerReferences"].append({"uid": "other", "kind": "X", "name": "x"}),
}


@pytest.mark.parametrize("change", ADDITIONS.values(), ids=ADDITIONS)
def test_what_others_add_is_no_drift(change: Change) -> None:
    wanted = manifest("StatefulSet", "demo-engine")
    live = copy.deepcopy(wanted)
    change(live)
    assert live != wanted
    assert matches(wanted, live)


# What must be applied again.
CHANGES: dict[str, Change] = {
    "a variable removed": lambda live: engine(live)["env"].pop(0),
    "a variable's value": lambda live: engine(live)["env"][-1].update(value="other"),
    "a variable twice": lambda live: engine(live)["env"].append({**engine(live)["env"][-1], "value": "other"}),
    "a toleration removed": lambda live: pod(live)["tolerations"].pop(),
    "a toleration of another effect": lambda live: pod(live)["tolerations"][0].update(effect="NoExecute"),
    "a container removed": lambda live: pod(live)["initContainers"].pop(),
    "a container renamed": lambda live: engine(live).update(name="other"),
    "a volume of another Secret": lambda live: secret_volume(live).update(secretName="other"),
    "a mount removed": lambda live: engine(live)["volumeMounts"].pop(),
    "a port of another number": lambda live: engine(live)["ports"][0].update(containerPort=1),
    "an argument more": lambda live: engine(live)["args"].append("--trust-remote-code"),
    "the owner removed": lambda live: live["metadata"].update(ownerReferences=[]),
    "a label of another value": lambda live: live["metadata"]["labels"].update({"app.kubernetes.io/instance": "x"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_or_removed_entry_of_ours_is_drift(change: Change) -> None:
    wanted = manifest("StatefulSet", "demo-engine")
    live = copy.deepcopy(wanted)
    change(live)
    assert not matches(wanted, live)


def test_a_port_more_is_no_drift_of_a_service_but_of_a_network_policy() -> None:
    service = manifest("Service", "demo-engine")
    live = copy.deepcopy(service)
    live["spec"]["ports"].append({"name": "x", "port": 1, "targetPort": 1, "protocol": "TCP"})
    assert matches(service, live)
    policy = manifest("NetworkPolicy", "demo-engine")
    for opened in (
        lambda live: live["spec"]["ingress"].append({}),
        lambda live: live["spec"]["ingress"][0]["ports"].append({"protocol": "TCP", "port": 22}),
        lambda live: live["spec"]["ingress"][0]["from"].append({"podSelector": {}}),
    ):
        live = copy.deepcopy(policy)
        opened(live)
        assert not matches(policy, live)


def stored(wanted: Any, uid: str = "u") -> Any:
    """As the API server returns it."""
    live = copy.deepcopy(wanted)
    live["metadata"] |= {"uid": uid, "resourceVersion": "5", "managedFields": [{}]}
    live["status"] = {"replicas": 1}
    return live


def test_fields_of_ours_that_a_webhook_rewrites_each_time_are_settled_after_one_apply() -> None:
    settled, wanted = Settled(), manifest("StatefulSet", "demo-engine")
    live = stored(wanted)
    engine(live)["image"] = "mirror.test/" + engine(live)["image"]
    assert not settled.is_settled(wanted, live)
    settled.applied(wanted, live)
    later = copy.deepcopy(live)
    later["metadata"]["resourceVersion"], later["status"] = "9", {"replicas": 2}
    assert settled.is_settled(wanted, later)
    # Somebody changes the object: that is drift again.
    engine(later)["image"] = "other:1"
    assert not settled.is_settled(wanted, later)


def test_a_changed_spec_is_applied_to_a_rewritten_object() -> None:
    settled, wanted = Settled(), manifest("StatefulSet", "demo-engine")
    live = stored(wanted)
    engine(live)["image"] = "mirror.test/x"
    settled.applied(wanted, live)
    changed = copy.deepcopy(wanted)
    changed["spec"]["replicas"] = 5
    assert not settled.is_settled(changed, live)


def test_another_object_of_the_same_name_is_applied() -> None:
    settled, wanted = Settled(), manifest("StatefulSet", "demo-engine")
    live = stored(wanted)
    engine(live)["image"] = "mirror.test/x"
    settled.applied(wanted, live)
    recreated = copy.deepcopy(live)
    recreated["metadata"]["uid"] = "another"
    assert not settled.is_settled(wanted, recreated)
    settled.forget(live)
    assert not settled.is_settled(wanted, live)
