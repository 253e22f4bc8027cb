"""Events about a cluster: one for each condition that turned, so that `kubectl describe` tells the story. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.common import MANAGER
from agentserving_operator.observe.reasons import ConditionType
from agentserving_operator.spec.crd import GROUP

TOLD = (ConditionType.READY, ConditionType.DEGRADED)
MAX_NOTE = 1024


def events_of(
    live: Manifest, previous: Mapping[str, Any], status: Mapping[str, Any], now: str, suffix: str
) -> list[Manifest]:
    """Objects of events.k8s.io/v1. `now` RFC 3339 in seconds; `suffix` makes names that are not used twice."""
    before = {each["type"]: each for each in previous.get("conditions", [])}
    found: list[Manifest] = []
    for each in status.get("conditions", []):
        old = before.get(each["type"], {})
        same = (old.get("status"), old.get("reason")) == (each["status"], each["reason"])
        # Degraded that was never so is no news.
        fine_from_the_start = not old and each["type"] == ConditionType.DEGRADED and each["status"] == "False"
        if each["type"] in TOLD and not same and not fine_from_the_start:
            found.append(_event(live, each, now, f"{suffix}{len(found)}"))
    return found


def _event(live: Manifest, condition: Mapping[str, Any], now: str, suffix: str) -> Manifest:
    where = live["metadata"]
    good = (condition["status"] == "True") == (condition["type"] == ConditionType.READY)
    waiting = condition["type"] == ConditionType.READY and condition["reason"] in ("Creating", "Starting", "RollingOut")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{where['name']}.{suffix}", "namespace": where["namespace"]},
        "eventTime": now.replace("Z", ".000000Z"),
        "type": "Normal" if good or waiting else "Warning",
        "reason": condition["reason"],
        "note": f"{condition['type']} is {condition['status']}: {condition['message']}"[:MAX_NOTE],
        "action": "Reconcile",
        "reportingController": f"{GROUP}/operator",
        "reportingInstance": MANAGER,
        "regarding": {
            "apiVersion": live["apiVersion"],
            "kind": live["kind"],
            "name": where["name"],
            "namespace": where["namespace"],
            "uid": where["uid"],
        },
    }
