"""A change touches the cluster it belongs to; what a watch missed shows in the next list; a bug ends the task."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agentserving_operator import watches as watches_module
from agentserving_operator.errors import RefusedError, UnavailableError, WatchExpiredError
from agentserving_operator.watches import OURS, WATCHED, Watch, clusters_of, watches
from support.eventually import eventually_async

LABELS = {"app.kubernetes.io/managed-by": "agentserving-operator", "app.kubernetes.io/instance": "demo"}


def pod(name: str, version: str, cluster: str = "demo") -> dict[str, Any]:
    labels = {**LABELS, "app.kubernetes.io/instance": cluster}
    return {"name": name, "namespace": "ns", "labels": labels, "resourceVersion": version}


class ScriptedApi:
    """Lists and watches as scripted: one entry for each request, an exception where the script has one."""

    def __init__(self) -> None:
        self.lists: list[list[dict[str, Any]] | Exception] = []
        self.watches: list[list[tuple[str, dict[str, Any]] | Exception]] = []
        self.requests: list[tuple[str, str, Mapping[str, str] | None]] = []

    async def metadata(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        self.requests.append(("list", kind, labels))
        found = self.lists.pop(0) if self.lists else []
        if isinstance(found, Exception):
            raise found
        return found, "100"

    async def watch(
        self, kind: str, namespace: str, since: str, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        self.requests.append((f"watch since {since}", kind, labels))
        if not self.watches:
            await asyncio.Event().wait()
        for each in self.watches.pop(0):
            if isinstance(each, Exception):
                raise each
            yield each


class Touched:
    """Clusters in the order in which they were touched."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, namespace: str, name: str) -> None:
        self.names.append(f"{namespace}/{name}")


@asynccontextmanager
async def running(api: ScriptedApi) -> AsyncIterator[Touched]:
    touched = Touched()
    task = asyncio.create_task(Watch(api, touched, kind="Pod", namespace="").run())
    try:
        yield touched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "FIRST_BACKOFF_S", 0.0)


async def test_listed_and_changed_objects_touch_their_cluster_and_bookmarks_do_not() -> None:
    api = ScriptedApi()
    api.lists = [[pod("a", "1", "one")]]
    api.watches = [[("ADDED", pod("b", "101", "two")), ("BOOKMARK", {"resourceVersion": "105"})]]
    async with running(api) as touched:
        # The API server ended the watch: the next one goes on where it was, without a list.
        await eventually_async(lambda: ("watch since 105", "Pod", OURS) in api.requests)
        assert touched.names == ["ns/one", "ns/two"]
        assert [request for request, *_ in api.requests].count("list") == 1


@pytest.mark.parametrize(
    "error",
    [WatchExpiredError("too old"), UnavailableError("connection lost"), RefusedError(403, "Forbidden", "no")],
    ids=["expired", "connection lost", "forbidden"],
)
async def test_after_an_error_it_lists_again(error: Exception) -> None:
    api = ScriptedApi()
    api.lists = [[], [pod("missed", "7")]]
    api.watches = [[error]]
    async with running(api) as touched:
        await eventually_async(lambda: touched.names == ["ns/demo"])


async def test_a_list_that_fails_is_repeated() -> None:
    api = ScriptedApi()
    api.lists = [UnavailableError("away"), [pod("a", "1")]]
    async with running(api) as touched:
        await eventually_async(lambda: touched.names == ["ns/demo"])


async def test_a_bug_is_raised() -> None:
    """The supervisor then ends the process: a watch that silently stopped would leave clusters unattended."""
    api = ScriptedApi()
    api.lists = [[{"name": "without a namespace", "labels": LABELS}]]
    with pytest.raises(KeyError):
        await asyncio.wait_for(Watch(api, Touched(), kind="Pod", namespace="").run(), 30)


async def test_lists_and_watches_of_all_kinds_are_selected_by_label_at_the_api_server() -> None:
    api = ScriptedApi()
    tasks = [asyncio.create_task(watch.run()) for watch in watches(api, Touched(), ())]
    try:
        await eventually_async(lambda: len(api.requests) == 2 * len(WATCHED))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert {kind for _, kind, _ in api.requests} == set(WATCHED)
    assert all(labels == OURS for *_, labels in api.requests)
    assert {"Pod", "StatefulSet", "Deployment", "Service", "ServiceAccount"} <= set(WATCHED)
    assert not {"Secret", "Event"} & set(WATCHED)


def test_namespaces_are_watched_one_by_one() -> None:
    names = [watch.name for watch in watches(ScriptedApi(), Touched(), ("a", "b"))]
    assert len(names) == len(set(names)) == 2 * len(WATCHED)


def test_an_object_belongs_to_the_clusters_of_its_owner_and_of_its_labels() -> None:
    owner = {"ownerReferences": [{"kind": "AgentServingCluster", "name": "a"}]}
    labels = {"labels": {**LABELS, "app.kubernetes.io/instance": "b"}}
    assert clusters_of(owner) == {"a"}
    assert clusters_of(labels) == {"b"}
    assert clusters_of(owner | labels) == {"a", "b"}
    assert clusters_of({"labels": {"app.kubernetes.io/instance": "b"}}) == set()
    assert clusters_of({"ownerReferences": [{"kind": "ReplicaSet", "name": "a"}]}) == set()


class Metadata(dict[str, Any]):
    """Metadata to which a weak reference can point."""


async def test_what_was_listed_is_released_while_changes_are_followed() -> None:
    """The metadata of fifty clusters' objects takes 8 MB."""
    api = ScriptedApi()
    listed = Metadata(pod("a", "1"))
    there = weakref.ref(listed)
    api.lists = [[listed]]
    del listed
    async with running(api) as touched:
        await eventually_async(lambda: ("watch since 100", "Pod", OURS) in api.requests)
        gc.collect()
        assert touched.names == ["ns/demo"]
        assert there() is None
