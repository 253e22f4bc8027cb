"""Events about a cluster: one for each condition that changed, so that `kubectl describe` shows the history. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.common import MANAGER
from agentserving_operator.observe.reasons import ConditionType, Reason
from agentserving_operator.spec.crd import GROUP

# The other conditions repeat what these two say.
REPORTED = (ConditionType.READY, ConditionType.DEGRADED)
MAX_NOTE = 1024
# Not ready for one of these reasons is the normal course of things.
_IN_PROGRESS = (Reason.CREATING, Reason.STARTING, Reason.ROLLING_OUT, Reason.ENGINE_LOADING)


def events_of(
    live: Manifest, previous: Mapping[str, Any], status: Mapping[str, Any], now: str, suffix: str
) -> list[Manifest]:
    """Objects of events.k8s.io/v1. `now` is RFC 3339 in seconds; `suffix` makes their names unique."""
    before = {each["type"]: each for each in previous.get("conditions", [])}
    events: list[Manifest] = []
    for each in status.get("conditions", []):
        old = before.get(each["type"], {})
        same = (old.get("status"), old.get("reason")) == (each["status"], each["reason"])
        # A new cluster that is not degraded is no news.
        never_degraded = not old and each["type"] == ConditionType.DEGRADED and each["status"] == "False"
        if each["type"] in REPORTED and not same and not never_degraded:
            events.append(_of_condition(live, each, now, f"{suffix}{len(events)}"))
    return events


def left_alone(live: Manifest, holder: str, now: str, suffix: str) -> Manifest:
    """The Event about a cluster that another operator looks after."""
    namespace, _, lease = holder.partition("/")
    note = (
        f"left alone: another operator looks after this cluster, whose Lease is {lease} in namespace {namespace}. "
        "Uninstall one of the two, or give each of them namespaces of its own (the chart's value namespaces)"
    )
    return _event(live, "Warning", Reason.OTHER_OPERATOR, note, now, suffix)


def _of_condition(live: Manifest, condition: Mapping[str, Any], now: str, suffix: str) -> Manifest:
    good = (condition["status"] == "True") == (condition["type"] == ConditionType.READY)
    waiting = condition["type"] == ConditionType.READY and condition["reason"] in _IN_PROGRESS
    note = f"{condition['type']} is {condition['status']}: {condition['message']}"
    return _event(live, "Normal" if good or waiting else "Warning", condition["reason"], note, now, suffix)


def _event(live: Manifest, kind: str, reason: str, note: str, now: str, suffix: str) -> Manifest:
    metadata = live["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{suffix}", "namespace": metadata["namespace"]},
        "eventTime": now.replace("Z", ".000000Z"),
        "type": kind,
        "reason": str(reason),
        "note": note[:MAX_NOTE],
        "action": "Reconcile",
        "reportingController": f"{GROUP}/operator",
        "reportingInstance": MANAGER,
        "regarding": {
            "apiVersion": live["apiVersion"],
            "kind": live["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }
