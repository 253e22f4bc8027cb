"""When clusters are visited: one task per cluster, so visits of one cluster never overlap.

Whatever happens to a cluster *touches* it. Touches during a visit cause one more visit, however many they are. Visits
of one cluster keep a distance, and failed ones back off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from agentserving_operator import metrics
from agentserving_operator.errors import ApiError
from agentserving_operator.reconcile import VisitResult

log = structlog.get_logger()

ClusterKey = tuple[str, str]
# Called with namespace and name: something happened to this cluster.
Touch = Callable[[str, str], None]
# Between two visits of one cluster: a rollout causes many events, and one status per second is enough for people.
DISTANCE_S = 0.5
# Visits in parallel over all clusters, so that a round does not ask the API server for everything in one moment.
PARALLEL = 4
PENDING_S, WAITING_S, FOREIGN_S = 2.0, 10.0, 15.0
_AGAIN_S = {
    VisitResult.PENDING: PENDING_S, VisitResult.WAITING: WAITING_S, VisitResult.FOREIGN: FOREIGN_S,
}  # fmt: skip
FIRST_BACKOFF_S, LAST_BACKOFF_S = 1.0, 60.0


class Visits:
    """`visit` takes (namespace, name). `progress_at` is the monotonic time at which a visit or round ended last."""

    def __init__(
        self, visit: Callable[[str, str], Awaitable[VisitResult]], *, distance_s: float = DISTANCE_S
    ) -> None:  # fmt: skip
        self._visit, self._distance_s = visit, distance_s
        self._slots = asyncio.Semaphore(PARALLEL)
        self._group: asyncio.TaskGroup | None = None
        self._touched: dict[ClusterKey, asyncio.Event] = {}
        self._running = 0
        self.progress_at = time.monotonic()

    @property
    def clusters(self) -> frozenset[ClusterKey]:
        """Clusters that are looked after: being visited, or to be visited again."""
        return frozenset(self._touched)

    @property
    def are_idle(self) -> bool:
        """Whether no visit is running and none is due."""
        return not self._running and not any(touched.is_set() for touched in self._touched.values())

    def touch(self, namespace: str, name: str) -> None:
        """Something happened to this cluster: visit it. Does not wait."""
        key = (namespace, name)
        is_new = key not in self._touched
        self._touched.setdefault(key, asyncio.Event()).set()
        if is_new and self._group is not None:
            self._group.create_task(self._look_after(key), name=f"visits of {namespace}/{name}")

    def round_ended(self) -> None:
        """A round over all clusters succeeded: as good as a visit where there is nothing to visit."""
        self.progress_at = time.monotonic()

    async def run(self) -> None:
        """Visits until it is cancelled. Raises what a task raised: errors of a visit are handled, so that is a bug."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                for namespace, name in self._touched:
                    group.create_task(self._look_after((namespace, name)), name=f"visits of {namespace}/{name}")
                await asyncio.Event().wait()
            finally:
                self._group = None

    async def _look_after(self, key: ClusterKey) -> None:
        """Visits a cluster for as long as it exists."""
        touched, backoff_s = self._touched[key], FIRST_BACKOFF_S
        while True:
            self._running += 1
            touched.clear()
            try:
                async with self._slots:
                    result = await self._measured(key)
            finally:
                self._running -= 1
            if result is VisitResult.GONE and not touched.is_set():
                del self._touched[key]
                return
            again_s: float | None = None
            if result in (None, VisitResult.REFUSED):
                again_s, backoff_s = backoff_s, min(2 * backoff_s, LAST_BACKOFF_S)
            else:
                backoff_s = FIRST_BACKOFF_S
                again_s = _AGAIN_S.get(result) if result is not None else None
            await asyncio.sleep(self._distance_s)
            try:
                await asyncio.wait_for(touched.wait(), again_s)
            except TimeoutError:
                continue

    async def _measured(self, key: ClusterKey) -> VisitResult | None:
        """One visit; None when it failed. A bug that one cluster triggers must not stop the visits of others."""
        with metrics.VISIT_SECONDS.time():
            try:
                result = await self._visit(*key)
            except ApiError as error:
                log.warning("visit failed, will retry", namespace=key[0], name=key[1], error=str(error))
                metrics.VISITS.labels(outcome="failed").inc()
                return None
            except Exception:
                log.exception("visit failed because of a bug, will retry", namespace=key[0], name=key[1])
                metrics.VISITS.labels(outcome="bug").inc()
                return None
        self.progress_at = time.monotonic()
        metrics.LAST_VISIT.set_to_current_time()
        metrics.VISITS.labels(outcome=result.value).inc()
        return result
