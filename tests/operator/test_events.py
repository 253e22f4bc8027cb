"""An Event for each condition that changed, and none for the others."""

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


def reported(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["type"], each["reason"]) for each in events_of(LIVE, before, after, NOW, "ab")]


def test_a_change_is_reported_once() -> None:
    starting, ready = status(("False", "Starting")), status(("True", "Ready"))
    failing = status(("False", "Unschedulable"), ("True", "Unschedulable"))
    assert reported({}, starting) == [("Normal", "Starting")]
    assert reported(starting, ready) == [("Normal", "Ready")]
    assert reported(ready, ready) == []
    assert reported(ready, failing) == [("Warning", "Unschedulable"), ("Warning", "Unschedulable")]
    assert reported(failing, ready) == [("Normal", "Ready"), ("Normal", "AsExpected")]


def test_an_event_names_the_cluster_and_the_reason() -> None:
    first, second = events_of(LIVE, {}, status(("False", "X"), ("True", "X")), NOW, "ab")
    assert first["regarding"]["uid"] == "u"
    assert first["note"] == "Ready is False: why"
    assert first["reportingController"] == "agentserving.io/operator"
    assert first["metadata"]["name"] != second["metadata"]["name"]
