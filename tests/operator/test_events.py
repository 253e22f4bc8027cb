"""An Event for each condition that turned, and none for what stays."""

from __future__ import annotations

from typing import Any

from agentserving_operator.observe.events import events_of

NOW = "2026-01-01T00:00:00Z"
LIVE = {
    "apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster",
    "metadata": {"name": "demo", "namespace": "ns", "uid": "u"},
}  # fmt: skip


def status(ready: tuple[str, str], degraded: tuple[str, str] = ("False", "AsExpected")) -> dict[str, Any]:
    pairs = {"Ready": ready, "Degraded": degraded, "Progressing": ("True", "RollingOut")}
    return {
        "conditions": [{"type": t, "status": s, "reason": r, "message": "why"} for t, (s, r) in pairs.items()],
    }


def told(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["type"], each["reason"]) for each in events_of(LIVE, before, after, NOW, "ab")]


def test_what_turned_is_told_once() -> None:
    starting, ready = status(("False", "Starting")), status(("True", "Ready"))
    failing = status(("False", "Unschedulable"), ("True", "Unschedulable"))
    assert told({}, starting) == [("Normal", "Starting")]
    assert told(starting, ready) == [("Normal", "Ready")]
    assert told(ready, ready) == []
    assert told(ready, failing) == [("Warning", "Unschedulable"), ("Warning", "Unschedulable")]
    assert told(failing, ready) == [("Normal", "Ready"), ("Normal", "AsExpected")]


def test_an_event_names_the_cluster_and_says_why() -> None:
    first, second = events_of(LIVE, {}, status(("False", "X"), ("True", "X")), NOW, "ab")
    assert first["regarding"]["uid"] == "u"
    assert first["note"] == "Ready is False: why"
    assert first["reportingController"] == "agentserving.io/operator"
    assert first["metadata"]["name"] != second["metadata"]["name"]
