"""What only Events explain is in a condition, with what to do: quotas, Secrets, volumes."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.errors import RefusedError
from agentserving_operator.manifests.common import Component, labels
from agentserving_operator.observe.owned import refused
from agentserving_operator.observe.reasons import Reason
from agentserving_operator.observe.trouble import trouble_of
from agentserving_operator.observe.warnings import are_waiting, claim_trouble, warning_trouble

QUOTA = 'create Pod demo-engine-0 failed: pods "demo-engine-0" is forbidden: exceeded quota: small, requested: pods=1'
NO_SECRET = 'MountVolume.SetUp failed for volume "model-token" : secret "hugging-face" not found'


def workload(wanted: int = 1, ready: int = 0, seen: bool = True) -> dict[str, Any]:
    spec = {"replicas": wanted, "volumeClaimTemplates": [{"metadata": {"name": "model-cache"}}]}
    status = {"observedGeneration": 1, "readyReplicas": ready} if seen else {}
    return {"kind": "StatefulSet", "metadata": {"name": "demo-engine"}, "spec": spec, "status": status}


def pod(*states: dict[str, Any], uid: str = "1", **status: Any) -> dict[str, Any]:
    metadata = {"name": "demo-engine-0", "uid": uid, "labels": labels("demo", Component.ENGINE)}
    return {"metadata": metadata, "status": {"containerStatuses": [{"state": each} for each in states], **status}}


def event(kind: str, name: str, reason: str, note: str, at: str = "2026-01-01T00:00:00Z", **about: str) -> Any:
    regarding = {"kind": kind, "name": name, **about}
    return {"metadata": {}, "regarding": regarding, "reason": reason, "note": note, "deprecatedLastTimestamp": at}


CREATING = {"waiting": {"reason": "ContainerCreating"}}


def test_a_quota_that_refuses_a_statefulsets_pods_is_named() -> None:
    found = warning_trouble(workload(), [], [event("StatefulSet", "demo-engine", "FailedCreate", QUOTA)])
    assert found is not None
    assert found.reason is Reason.QUOTA_EXCEEDED
    assert QUOTA in found.message
    assert "raise the ResourceQuota" in found.message


def test_other_refusals_are_quoted_as_well() -> None:
    note = 'pods "demo-engine-0" is forbidden: no PriorityClass with name inference was found'
    found = warning_trouble(workload(), [], [event("StatefulSet", "demo-engine", "FailedCreate", note)])
    assert found is not None
    assert (found.reason, note in found.message) == (Reason.CREATE_FAILED, True)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("FailedMount", Reason.VOLUME_NOT_MOUNTED),
        ("FailedAttachVolume", Reason.VOLUME_NOT_MOUNTED),
        ("FailedCreatePodSandBox", Reason.CREATE_FAILED),
    ],
)
def test_a_pod_that_cannot_start_says_what_it_waits_for(reason: str, expected: Reason) -> None:
    said = event("Pod", "demo-engine-0", reason, NO_SECRET, uid="1")
    found = warning_trouble(workload(), [pod(CREATING)], [said])
    assert found is not None
    assert found.reason is expected
    assert 'secret "hugging-face" not found' in found.message


def test_a_pod_without_a_node_says_what_its_claim_waits_for() -> None:
    unbound = {"type": "PodScheduled", "status": "False", "message": "pod has unbound PersistentVolumeClaims"}
    pods = [pod(conditions=[unbound])]
    note = 'storageclass.storage.k8s.io "ssd" not found'
    said = event("PersistentVolumeClaim", "model-cache-demo-engine-0", "ProvisioningFailed", note)
    assert (trouble := trouble_of(workload(), pods)) is not None
    assert trouble.reason is Reason.UNSCHEDULABLE
    claim = claim_trouble(workload(), pods, [said])
    assert claim is not None
    assert (claim.reason, note in claim.message) == (Reason.VOLUME_PENDING, True)


@pytest.mark.parametrize(
    ("message", "is_advised"),
    [
        ("0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, "
         "1 node(s) were unschedulable.", True),
        ("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", False),
    ],
)  # fmt: skip
def test_a_pod_that_waits_for_a_drained_node_says_what_gives_it_back(message: str, is_advised: bool) -> None:
    waiting = {"type": "PodScheduled", "status": "False", "message": message}
    assert (trouble := trouble_of(workload(), [pod(conditions=[waiting])])) is not None
    assert message in trouble.message
    assert ("kubectl uncordon" in trouble.message) is is_advised


def test_the_newest_words_count_whichever_field_has_their_time() -> None:
    old = event("Pod", "demo-engine-0", "FailedMount", "old", at="2026-01-01T00:00:09Z")
    new = {
        **event("Pod", "demo-engine-0", "FailedMount", "new"),
        "series": {"lastObservedTime": "2026-01-01T00:01:00Z"},
    }
    found = warning_trouble(workload(), [pod(CREATING)], [new, old])
    assert found is not None
    assert ": new;" in found.message


@pytest.mark.parametrize(
    ("pods", "said"),
    [
        # The volume was mounted since.
        ([pod({"running": {}})], event("Pod", "demo-engine-0", "FailedMount", NO_SECRET)),
        # A pod of the same name before it.
        ([pod(CREATING)], event("Pod", "demo-engine-0", "FailedMount", NO_SECRET, uid="0")),
        # The pod exists by now.
        ([pod(CREATING)], event("StatefulSet", "demo-engine", "FailedCreate", QUOTA)),
        ([pod(CREATING)], event("Pod", "demo-engine-0", "Unhealthy", "Startup probe failed")),
        ([pod(CREATING)], event("Pod", "other-engine-0", "FailedMount", NO_SECRET)),
        ([], event("StatefulSet", "other-engine", "FailedCreate", QUOTA)),
    ],
)
def test_what_is_over_or_about_something_else_is_not_repeated(pods: list[Any], said: Any) -> None:
    assert warning_trouble(workload(), pods, [said]) is None


@pytest.mark.parametrize(
    ("found", "pods", "waiting"),
    [
        (workload(), [], True),
        (workload(), [pod(CREATING)], True),
        (workload(), [pod({"running": {}})], False),
        (workload(ready=1), [], False),
        # Its controller has not seen it: there is nothing to explain yet.
        (workload(seen=False), [], False),
        (None, [], False),
    ],
)
def test_events_are_read_only_while_pods_are_missing_or_start_nothing(found: Any, pods: Any, waiting: bool) -> None:
    assert are_waiting(found, pods) is waiting


@pytest.mark.parametrize(
    ("kind", "words", "advice"),
    [
        (
            "StatefulSet",
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas' are forbidden",
            "kubectl delete statefulset demo --cascade=orphan",
        ),
        ("Service", "spec.ipFamilies[0]: Invalid value: may not change once set", "kubectl delete service demo;"),
    ],
)
def test_a_field_that_cannot_change_says_how_to_replace_the_object(kind: str, words: str, advice: str) -> None:
    trouble = refused(kind, "demo", RefusedError(422, "Invalid", words))
    assert trouble.reason is Reason.CANNOT_BE_CHANGED
    assert words in trouble.message
    assert advice in trouble.message
