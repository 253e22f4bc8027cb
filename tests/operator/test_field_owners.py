"""managedFields name the stored version only, so that a chart without v1beta1 can write the status again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agentserving_operator.errors import ConflictError, RefusedError
from agentserving_operator.field_owners import in_stored_version, renamed
from agentserving_operator.spec.crd import KIND
from support.memory_api import MemoryApi

OLD, NEW = "agentserving.io/v1alpha1", "agentserving.io/v1beta1"


def entry(version: str, *fields: str, manager: str = "kubectl-edit", **more: Any) -> dict[str, Any]:
    owned = {"f:spec": {f"f:{each}": {} for each in fields}}
    return {"manager": manager, "operation": "Update", "apiVersion": version, "fieldsV1": owned, **more}


def test_entries_of_the_stored_version_alone_need_no_write() -> None:
    assert renamed([]) is None
    assert renamed([entry(OLD, "model")]) is None


def test_an_entry_of_v1beta1_names_the_stored_version_and_others_stay() -> None:
    status = entry(OLD, manager="agentserving-operator", subresource="status")
    assert renamed([status, entry(NEW, "model")]) == [status, entry(OLD, "model")]


def test_entries_that_differ_in_their_version_alone_become_one_with_the_fields_of_both() -> None:
    early, late = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    found = renamed([entry(OLD, "model", "engine", time=late), entry(NEW, "engine", "tls", time=early)])
    assert found == [entry(OLD, "engine", "model", "tls", time=late)]


def test_entries_of_a_subresource_stay_apart() -> None:
    found = renamed([entry(NEW, "engine", subresource="scale"), entry(NEW, "engine")])
    assert found == [entry(OLD, "engine", subresource="scale"), entry(OLD, "engine")]


def visited(api: MemoryApi) -> Any:
    api.put_cluster("default", "demo", {})
    live = api.objects[KIND, "default", "demo"]
    live["metadata"]["managedFields"] = [entry(NEW, "model")]
    return asyncio.run(in_stored_version(api, live))


def test_the_entries_are_written_and_the_newest_object_returned() -> None:
    found = visited(api := MemoryApi())
    assert found == api.objects[KIND, "default", "demo"]
    assert found["metadata"]["managedFields"] == [entry(OLD, "model")]


def test_a_refusal_does_not_end_the_visit_and_a_conflict_does() -> None:
    api = MemoryApi()
    api.refuse["demo"] = RefusedError(422, "Invalid", "a rule of today")
    assert visited(api)["metadata"]["managedFields"] == [entry(NEW, "model")]
    api.refuse["demo"] = ConflictError(409, "Conflict", "modified")
    with pytest.raises(ConflictError):
        visited(api)
