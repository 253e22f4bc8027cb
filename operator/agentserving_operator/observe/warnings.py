"""What keeps pods from being created or from starting, where only Events say so. Pure.

A Deployment's status says why its pods cannot be created, a StatefulSet's does not; and a pod whose volume cannot be
mounted says that it waits. Kubernetes' controllers and the kubelet explain both in Events of type Warning. They are
read only while something waits (`are_waiting`): an Event stays for an hour, whatever has become of its cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agentserving_operator.manifests import Manifest
from agentserving_operator.observe.reasons import Reason, Trouble

# By the reason of the Event: our reason, and what to do.
_OF_POD = {
    "FailedMount": (Reason.VOLUME_NOT_MOUNTED, "create what the volume refers to, or correct the field that names it"),
    "FailedAttachVolume": (Reason.VOLUME_NOT_MOUNTED, "see the volume's driver"),
    "FailedCreatePodSandBox": (Reason.CREATE_FAILED, "see the network plug-in and the RuntimeClass on that node"),
}
_OF_CLAIM = {
    "ProvisioningFailed": (Reason.VOLUME_PENDING, "choose another storageClassName, or see the provisioner's log"),
    "FailedBinding": (Reason.VOLUME_PENDING, "set a storageClassName, or make one StorageClass the default"),
}
_QUOTA_ADVICE = "raise the ResourceQuota, or lower replicas or resources"
_CREATE_ADVICE = "allow it, or change what the message names"
Kinds = Mapping[str, tuple[Reason, str]]


def are_waiting(workload: Manifest | None, pods: Sequence[Manifest]) -> bool:
    """Whether a workload lacks pods, or one of its pods (labels were compared before) has not started anything."""
    if workload is None:
        return False
    status = workload.get("status", {})
    if "observedGeneration" not in status or int(status.get("readyReplicas", 0)) >= _replicas(workload):
        # Its controller has not seen it yet, which a watch will report; or nothing is missing.
        return False
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return len(alive) < _wanted(workload) or any(not _has_started(pod) for pod in alive)


def warning_trouble(
    workload: Manifest | None, pods: Sequence[Manifest], warnings: Sequence[Manifest]
) -> Trouble | None:  # fmt: skip
    """The newest warning about what a workload waits for; None when nothing is said. `warnings`: of its namespace."""
    if workload is None or not are_waiting(workload, pods):
        return None
    said = [(_time(event), trouble) for event, trouble in _relevant(workload, pods, warnings)]
    return max(said, key=lambda each: each[0])[1] if said else None


def claim_trouble(
    workload: Manifest | None, pods: Sequence[Manifest], warnings: Sequence[Manifest]
) -> Trouble | None:  # fmt: skip
    """The same about its PersistentVolumeClaims alone: why a pod has no node, where the scheduler says only that."""
    return warning_trouble(workload, pods, [each for each in warnings if _about(each)[0] == "PersistentVolumeClaim"])


def _replicas(workload: Manifest) -> int:
    return int(workload["spec"].get("replicas", 1))


def _wanted(workload: Manifest) -> int:
    """Its pods: a replica of a LeaderWorkerSet has several."""
    return _replicas(workload) * int(workload["spec"].get("leaderWorkerTemplate", {}).get("size", 1))


def _has_started(pod: Manifest) -> bool:
    status = pod.get("status", {})
    states = [each.get("state", {}) for each in _containers(status)]
    return any("running" in each or "terminated" in each for each in states) or any(
        each.get("restartCount") for each in _containers(status)
    )


def _containers(status: Manifest) -> list[Manifest]:
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def _relevant(
    workload: Manifest, pods: Sequence[Manifest], warnings: Sequence[Manifest]
) -> Iterator[tuple[Manifest, Trouble]]:
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    waiting = {pod["metadata"]["name"]: pod["metadata"].get("uid") for pod in alive if not _has_started(pod)}
    templates = [each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])]
    claims = {f"{template}-{pod}" for template in templates for pod in waiting}
    owner = (workload["kind"], workload["metadata"]["name"])
    for event in warnings:
        kind, name = _about(event)
        if kind == "Pod" and name in waiting and event["regarding"].get("uid") in (None, waiting[name]):
            yield from _translated(event, _OF_POD)
        elif kind == "PersistentVolumeClaim" and name in claims:
            yield from _translated(event, _OF_CLAIM)
        elif (kind, name) == owner and event.get("reason") == "FailedCreate" and len(alive) < _wanted(workload):
            yield event, _not_created(event)


def _about(event: Manifest) -> tuple[str, str]:
    regarding = event.get("regarding", {})
    return str(regarding.get("kind", "")), str(regarding.get("name", ""))


def _translated(event: Manifest, kinds: Kinds) -> Iterator[tuple[Manifest, Trouble]]:
    known = kinds.get(str(event.get("reason", "")))
    if known is not None:
        kind, name = _about(event)
        yield event, Trouble(known[0], f"{kind} {name}: {_note(event)}; {known[1]}")


def _not_created(event: Manifest) -> Trouble:
    kind, name = _about(event)
    note = _note(event)
    reason, advice = (
        (Reason.QUOTA_EXCEEDED, _QUOTA_ADVICE)
        if "exceeded quota" in note or "failed quota" in note
        else (Reason.CREATE_FAILED, _CREATE_ADVICE)
    )
    return Trouble(reason, f"{kind} {name}: {note}; {advice}")


def _note(event: Manifest) -> str:
    return " ".join(str(event.get("note", "")).split())


def _time(event: Manifest) -> str:
    """RFC 3339; reporters fill different fields."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return max((str(each) for each in times if each), default=str(event["metadata"].get("creationTimestamp") or ""))
