"""When clusters are visited: each by one task at a time, occasions that come meanwhile are one more visit.

Whoever touches a cluster does not wait. Visits of one cluster keep a distance, failed ones a growing one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from agentserving_operator import metrics
from agentserving_operator.api_server import ApiError
from agentserving_operator.reconcile import Outcome

log = structlog.get_logger()

Key = tuple[str, str]
# Between two visits of one cluster: a rollout makes many events, and a status a second is enough for people.
DISTANCE_S = 0.5
# At once, over all clusters: a round would else ask the API server for everything in one moment.
PARALLEL = 4
PENDING_S = 2.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 1.0, 60.0


class Visits:
    """`visit` is given (namespace, name). `settled_at` is the monotonic time at which a visit ended last."""

    def __init__(self, visit: Callable[[str, str], Awaitable[Outcome]], *, distance_s: float = DISTANCE_S) -> None:
        self._visit, self._distance_s = visit, distance_s
        self._free = asyncio.Semaphore(PARALLEL)
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._touched: dict[Key, asyncio.Event] = {}
        self._running = 0
        self.settled_at = time.monotonic()

    @property
    def clusters(self) -> frozenset[Key]:
        """Those that are being visited, or will be again."""
        return frozenset(self._tasks)

    def touch(self, namespace: str, name: str) -> None:
        """Something has happened there."""
        key = (namespace, name)
        self._touched.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._keep(key))

    async def close(self) -> None:
        """Ends all visits where they are: the next operator begins them anew."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def are_idle(self) -> bool:
        """No visit is under way, and none is waited for but by its own delay."""
        return not self._running and not any(touched.is_set() for touched in self._touched.values())

    def heard(self) -> None:
        """A round over all clusters has ended well: as good as a visit where there was nothing to visit."""
        self.settled_at = time.monotonic()

    async def _keep(self, key: Key) -> None:
        """Visits a cluster for as long as there is one."""
        touched, backoff_s = self._touched[key], FIRST_BACKOFF_S
        while True:
            self._running += 1
            touched.clear()
            try:
                outcome = await self._once(key)
            finally:
                self._running -= 1
            if outcome is Outcome.GONE and not touched.is_set():
                del self._tasks[key], self._touched[key]
                return
            again_s: float | None = None
            if outcome in (None, Outcome.REFUSED):
                again_s, backoff_s = backoff_s, min(2 * backoff_s, LAST_BACKOFF_S)
            else:
                backoff_s = FIRST_BACKOFF_S
                again_s = PENDING_S if outcome is Outcome.PENDING else None
            await asyncio.sleep(self._distance_s)
            try:
                await asyncio.wait_for(touched.wait(), again_s)
            except TimeoutError:
                continue

    async def _once(self, key: Key) -> Outcome | None:
        """None when it failed: whatever one cluster does, the others go on."""
        async with self._free:
            return await self._measured(key)

    async def _measured(self, key: Key) -> Outcome | None:
        with metrics.VISIT_SECONDS.time():
            try:
                outcome = await self._visit(*key)
            except ApiError as error:
                log.warning("visit failed, will try again", namespace=key[0], name=key[1], error=str(error))
                metrics.VISITS.labels(outcome="failed").inc()
                return None
            except Exception:
                log.exception("visit failed by a bug, will try again", namespace=key[0], name=key[1])
                metrics.VISITS.labels(outcome="bug").inc()
                return None
        self.settled_at = time.monotonic()
        metrics.LAST_VISIT.set_to_current_time()
        metrics.VISITS.labels(outcome=outcome.value).inc()
        return outcome
