"""What keeps pods from running, according to the pods and their Deployment. Pure."""

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
_ADVICE = {
    Reason.IMAGE_PULL_FAILED: "check the image's name, and imagePullSecrets in the chart's values",
    Reason.CONTAINER_CONFIG_INVALID: "create the object it refers to",
    Reason.CRASHING: "see its log",
}
# The scheduler's words for a node that was cordoned, as `kubectl drain` does first. A pod with a volume of that node
# waits for it.
_CORDONED = "node(s) were unschedulable"
UNCORDON = "; `kubectl uncordon NODE` lets a node that was drained take pods again"
# The end of a container's log, as much as is worth a condition.
MAX_LAST_WORDS = 300


def trouble_of(workload: Manifest | None, pods: Sequence[Manifest]) -> Trouble | None:
    """The first problem of a workload; None when there is none, or none yet."""
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
            message = condition.get("message") or condition.get("reason", "no node")
            advice = UNCORDON if _CORDONED in message else ""
            yield Trouble(Reason.UNSCHEDULABLE, f"pod {name}: {message}{advice}")
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        reason = _WAITING.get(waiting.get("reason", ""))
        if reason is not None:
            message = (
                _exit_of(container) if reason is Reason.CRASHING else waiting.get("message") or waiting["reason"]
            )  # fmt: skip
            yield Trouble(reason, f"pod {name}, container {container['name']}: {message}; {_ADVICE[reason]}")


def _exit_of(container: Manifest) -> str:
    last = container.get("lastState", {}).get("terminated", {})
    ended = f"{last.get('reason', 'ended')} with exit code {last.get('exitCode', '?')}"
    # kubelet copies the end of the log there when a container fails (terminationMessagePolicy).
    words = " ".join(str(last.get("message", "")).split())[-MAX_LAST_WORDS:]
    return f"{ended}, restarted {container.get('restartCount', 0)} times" + (f": {words}" if words else "")


def _of_workload(workload: Manifest) -> Trouble | None:
    for condition in workload.get("status", {}).get("conditions", []):
        if (condition["type"], condition["status"]) == ("ReplicaFailure", "True"):
            message = str(condition.get("message", ""))
            reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason.CREATE_FAILED
            return Trouble(reason, f"{workload['kind']} {workload['metadata']['name']}: {message}")
    return None
