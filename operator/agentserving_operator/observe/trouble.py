"""What keeps pods from running, as pods and Deployments tell it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentserving_operator.manifests import Manifest
from agentserving_operator.observe.reasons import Reason, Trouble

_WAITING = {
    "ErrImagePull": Reason.IMAGE_PULL_FAILED,
    "ImagePullBackOff": Reason.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_FAILED,
    "InvalidImageName": Reason.IMAGE_PULL_FAILED,
    "CreateContainerConfigError": Reason.CONTAINER_CONFIG_INVALID,
    "CreateContainerError": Reason.CONTAINER_CONFIG_INVALID,
    "RunContainerError": Reason.CONTAINER_CONFIG_INVALID,
    "CrashLoopBackOff": Reason.CRASHING,
}
_DO = {
    Reason.IMAGE_PULL_FAILED: "check the image's name, and imagePullSecrets of the operator's chart",
    Reason.CONTAINER_CONFIG_INVALID: "create what it refers to",
    Reason.CRASHING: "see its log",
}


def trouble_of(workload: Manifest | None, pods: Sequence[Manifest]) -> Trouble | None:
    """The first trouble of a workload; None when there is none, or not yet."""
    for pod in sorted(pods, key=lambda each: str(each["metadata"]["name"])):
        if "deletionTimestamp" in pod["metadata"]:
            continue
        for found in _of_pod(pod):
            return found
    return _of_workload(workload) if workload is not None else None


def _of_pod(pod: Manifest) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions", []):
        if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
            told = condition.get("message") or condition.get("reason", "no node")
            yield Trouble(Reason.UNSCHEDULABLE, f"pod {name}: {told}")
    for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = one.get("state", {}).get("waiting", {})
        reason = _WAITING.get(waiting.get("reason", ""))
        if reason is not None:
            told = _ended(one) if reason is Reason.CRASHING else waiting.get("message") or waiting["reason"]
            yield Trouble(reason, f"pod {name}, container {one['name']}: {told}; {_DO[reason]}")


def _ended(container: Manifest) -> str:
    last = container.get("lastState", {}).get("terminated", {})
    how = last.get("reason", "ended")
    return f"{how} with exit code {last.get('exitCode', '?')}, restarted {container.get('restartCount', 0)} times"


def _of_workload(workload: Manifest) -> Trouble | None:
    for condition in workload.get("status", {}).get("conditions", []):
        if (condition["type"], condition["status"]) == ("ReplicaFailure", "True"):
            told = str(condition.get("message", ""))
            reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in told else Reason.CREATE_FAILED
            return Trouble(reason, f"{workload['kind']} {workload['metadata']['name']}: {told}")
    return None
