"""The regular round: what no event tells, at a price that many idle clusters can be asked to pay.

A visit reads nine times and compares some twenty objects. Watches tell of changed objects, so a round only asks the
control planes, which nothing watches, and touches the clusters whose answer is another one. Each tenth round touches
all: what a lost watch or a deleted ticket key has left is found then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import structlog

from agentserving_operator.api_server import ApiError
from agentserving_operator.spec.crd import KIND
from agentserving_operator.visits import PARALLEL, Key, Visits

log = structlog.get_logger()

WHOLE_EVERY = 10


class Finder(Protocol):
    """What a round asks of the API server."""

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """By labels; an empty namespace is all of them. Raises ApiError."""


class Planes(Protocol):
    """What a round asks of control planes."""

    async def is_as_known(self, namespace: str, name: str) -> bool:
        """Whether a visit of that cluster now would be told what the last one was. MUST NOT raise."""

    def retain(self, clusters: Collection[Key]) -> None:
        """There are no others any more."""


class Rounds:
    """Over the clusters of some namespaces; none = all."""

    def __init__(self, api: Finder, visits: Visits, planes: Planes, namespaces: tuple[str, ...] = ()) -> None:
        self._api, self._visits, self._planes = api, visits, planes
        self._namespaces = namespaces or ("",)
        self._made = 0

    async def keep(self, every_s: float) -> None:
        """For ever."""
        while True:
            try:
                await self.make()
            except ApiError as error:
                log.warning("round failed, will try again", error=str(error))
            await asyncio.sleep(every_s)

    async def make(self) -> None:
        """One. ApiError when the clusters cannot be listed."""
        found = [each for namespace in self._namespaces for each in await self._api.find(KIND, namespace)]
        keys = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found]
        self._planes.retain(keys)
        whole, self._made = self._made % WHOLE_EVERY == 0, self._made + 1
        free = asyncio.Semaphore(PARALLEL)

        async def look(key: Key) -> None:
            # One that is not looked after yet is new, whatever its control plane says.
            if not whole and key in self._visits.clusters:
                async with free:
                    if await self._planes.is_as_known(*key):
                        return
            self._visits.touch(*key)

        await asyncio.gather(*(look(key) for key in keys))
        if self._visits.are_idle:
            self._visits.heard()
