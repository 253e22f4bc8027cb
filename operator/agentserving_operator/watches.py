"""Watches of the objects of clusters: a change touches the cluster that the object belongs to.

Nothing is decided or written here, and no object is kept. The API server selects by label and sends only metadata, so
what a watch transfers and holds grows with our clusters' objects, not with all pods and Services of the Kubernetes
cluster. The clusters themselves are watched by kopf (`handlers.py`), which always transfers whole objects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import structlog

from agentserving_operator import metrics
from agentserving_operator.api_server import CHILD_KINDS
from agentserving_operator.errors import ApiError, WatchExpiredError
from agentserving_operator.manifests.common import MANAGED_BY, MANAGER
from agentserving_operator.spec.crd import KIND
from agentserving_operator.visits import Touch

log = structlog.get_logger()

FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 30.0
# All objects of a cluster carry it, its pods too.
OURS = {MANAGED_BY: MANAGER}
WATCHED = (*CHILD_KINDS, "Pod")


class WatchApi(Protocol):
    """What watches ask of the API server. Every method raises ApiError."""

    async def metadata(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        """Metadata of all objects with these labels, and their resource version."""

    def watch(
        self, kind: str, namespace: str, since: str, labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """(type of the change, metadata) after a resource version; WatchExpiredError when that is too old."""


def clusters_of(metadata: Mapping[str, Any]) -> set[str]:
    """Names of the clusters that an object belongs to.

    By its owner and by its labels, so that an object which lost one of them still touches its cluster.
    """
    names = {str(owner["name"]) for owner in metadata.get("ownerReferences") or () if owner.get("kind") == KIND}
    labels = metadata.get("labels") or {}
    if labels.get(MANAGED_BY) == MANAGER and labels.get("app.kubernetes.io/instance"):
        names.add(str(labels["app.kubernetes.io/instance"]))
    return names


class Watch:
    """Our objects of one kind in one namespace ("" = all).

    `run` lists, then follows changes, and lists again after an error.
    """

    def __init__(self, api: WatchApi, touch: Touch, *, kind: str, namespace: str) -> None:
        self._api, self._touch = api, touch
        self._kind, self._namespace = kind, namespace
        self.name = f"watch {kind}" + (f" in {namespace}" if namespace else "")

    async def run(self) -> None:
        """Never returns. Errors of the API server are logged and retried; any other exception is a bug, and raised."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            began = time.monotonic()
            try:
                await self._follow(await self._list())
            except WatchExpiredError:
                # The API server's history is shorter than our pause was: the next list shows what changed meanwhile.
                log.info("watch expired, will list again", kind=self._kind)
            except ApiError as error:
                metrics.WATCH_ERRORS.labels(kind=self._kind).inc()
                log.warning("watch failed, will retry", kind=self._kind, error=str(error))
            if time.monotonic() - began > LAST_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    async def _list(self) -> str:
        """Touches the clusters of all objects. Returns the resource version that follows.

        A function of its own, so that no local variable has the objects for as long as the watch runs.
        """
        items, version = await self._api.metadata(self._kind, self._namespace, OURS)
        for each in items:
            self._touch_clusters_of(each)
        return version

    async def _follow(self, version: str) -> None:
        while True:
            async for change, metadata in self._api.watch(self._kind, self._namespace, version, OURS):
                version = str(metadata["resourceVersion"])
                if change != "BOOKMARK":
                    self._touch_clusters_of(metadata)

    def _touch_clusters_of(self, metadata: Mapping[str, Any]) -> None:
        for name in clusters_of(metadata):
            self._touch(str(metadata["namespace"]), name)


def watches(api: WatchApi, touch: Touch, namespaces: tuple[str, ...]) -> list[Watch]:
    """One watch for each watched kind and namespace; no namespaces = one over all of them."""
    return [Watch(api, touch, kind=kind, namespace=namespace) for namespace in namespaces or ("",) for kind in WATCHED]
