"""Rounds over all clusters, for what no watch reports, at a cost that many idle clusters can bear.

A visit reads ten times and compares about twenty objects. Changed objects touch their cluster through a watch, so a
round only asks the control planes, which nothing watches, and touches the clusters whose control plane answers
differently than before. Each cluster is touched once in VISIT_EVERY rounds in any case, a few of them in each round:
that finds what a lost watch or a deleted ticket key left behind.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import structlog

from agentserving_operator import metrics
from agentserving_operator.errors import ApiError
from agentserving_operator.spec.crd import KIND
from agentserving_operator.visits import PARALLEL, ClusterKey, Visits

log = structlog.get_logger()

# Ten minutes. Every five, visits alone took half of what an idle operator uses.
VISIT_EVERY = 20


class ClusterApi(Protocol):
    """What a round asks of the API server. Raises ApiError."""

    async def metadata(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        """Metadata of all objects with these labels ("" = in all namespaces), and their resource version."""


class ControlPlaneApi(Protocol):
    """What a round asks of control planes."""

    async def has_changed(self, namespace: str, name: str) -> bool:
        """Whether a visit of that cluster would now see something else than the last one. MUST NOT raise."""

    def retain(self, clusters: Collection[ClusterKey]) -> None:
        """There are no other clusters any more."""


class Rounds:
    """Rounds over the clusters of some namespaces; no namespaces = all of them."""

    def __init__(
        self, api: ClusterApi, visits: Visits, planes: ControlPlaneApi, namespaces: tuple[str, ...] = ()
    ) -> None:
        self._api, self._visits, self._planes = api, visits, planes
        self._namespaces = namespaces or ("",)
        # Rounds begun.
        self._count = 0

    async def run(self, every_s: float) -> None:
        """Never returns. Errors of the API server are logged and the next round tries again."""
        while True:
            try:
                await self.make_round()
            except ApiError as error:
                log.warning("round failed, will retry", error=str(error))
            await asyncio.sleep(every_s)

    async def make_round(self) -> None:
        """One round. Raises ApiError when the clusters cannot be listed."""
        found = [each for namespace in self._namespaces for each in (await self._api.metadata(KIND, namespace))[0]]
        keys = [(each["namespace"], each["name"]) for each in found]
        self._planes.retain(keys)
        self._count += 1
        slots = asyncio.Semaphore(PARALLEL)

        async def touch_if_changed(key: ClusterKey) -> None:
            # A cluster that was never visited is new, whatever its control plane says.
            if key in self._visits.clusters and not self._is_due(key):
                async with slots:
                    if not await self._planes.has_changed(*key):
                        return
            self._visits.touch(*key)

        await asyncio.gather(*(touch_if_changed(key) for key in keys))
        if self._visits.are_idle:
            self._visits.round_ended()
            metrics.LAST_VISIT.set_to_current_time()

    def _is_due(self, key: ClusterKey) -> bool:
        """Whether it is this cluster's turn, which does not depend on other clusters."""
        return zlib.crc32("/".join(key).encode()) % VISIT_EVERY == self._count % VISIT_EVERY
