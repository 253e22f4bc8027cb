"""Each cluster is visited by one task at a time, and again when something happened during a visit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest
from agentserving_operator import visits as visits_module
from agentserving_operator.errors import UnavailableError
from agentserving_operator.reconcile import VisitResult
from agentserving_operator.visits import Visits
from support.eventually import eventually_async


class Visitor:
    """Counts visits; each waits until the test lets it end."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self.results: asyncio.Queue[VisitResult | Exception] = asyncio.Queue()
        self.running = self.most = 0

    async def __call__(self, namespace: str, name: str) -> VisitResult:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.began.put(f"{namespace}/{name}")
        result = await self.results.get()
        self.running -= 1
        if isinstance(result, Exception):
            raise result
        return result


@asynccontextmanager
async def running(visitor: Visitor) -> AsyncIterator[Visits]:
    visits = Visits(visitor, distance_s=0)
    task = asyncio.create_task(visits.run())
    try:
        yield visits
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def within(awaited: Awaitable[str]) -> str:
    return await asyncio.wait_for(awaited, 30)


async def test_many_touches_during_a_visit_cause_one_more() -> None:
    visitor = Visitor()
    async with running(visitor) as visits:
        visits.touch("ns", "a")
        assert await within(visitor.began.get()) == "ns/a"
        for _ in range(10):
            visits.touch("ns", "a")
        await visitor.results.put(VisitResult.SETTLED)
        assert await within(visitor.began.get()) == "ns/a"
        await visitor.results.put(VisitResult.SETTLED)
        await eventually_async(lambda: visits.are_idle)
        assert visitor.most == 1
        assert visitor.began.empty()


async def test_a_touch_before_the_start_is_kept() -> None:
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    visits.touch("ns", "a")
    assert not visits.are_idle
    task = asyncio.create_task(visits.run())
    assert await within(visitor.began.get()) == "ns/a"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_clusters_do_not_wait_for_each_other() -> None:
    visitor = Visitor()
    async with running(visitor) as visits:
        visits.touch("ns", "a")
        visits.touch("ns", "b")
        assert {await within(visitor.began.get()), await within(visitor.began.get())} == {"ns/a", "ns/b"}


async def test_only_some_clusters_are_visited_in_parallel() -> None:
    visitor = Visitor()
    async with running(visitor) as visits:
        for number in range(3 * visits_module.PARALLEL):
            visits.touch("ns", str(number))
        for _ in range(3 * visits_module.PARALLEL):
            await within(visitor.began.get())
            await visitor.results.put(VisitResult.SETTLED)
        assert visitor.most == visits_module.PARALLEL


async def test_a_cluster_that_is_gone_is_forgotten() -> None:
    visitor = Visitor()
    async with running(visitor) as visits:
        visits.touch("ns", "a")
        await visitor.results.put(VisitResult.GONE)
        await eventually_async(lambda: not visits.clusters)


@pytest.mark.parametrize(
    "failure", [UnavailableError("away"), RuntimeError("a bug"), VisitResult.REFUSED, VisitResult.PENDING]
)
async def test_a_visit_that_failed_or_is_pending_is_repeated_without_a_touch(
    failure: VisitResult | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits_module, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(visits_module, "PENDING_S", 0.01)
    visitor = Visitor()
    async with running(visitor) as visits:
        visits.touch("ns", "a")
        await visitor.results.put(failure)
        await visitor.results.put(VisitResult.SETTLED)
        for _ in range(2):
            await within(visitor.began.get())


async def test_only_a_visit_that_ends_well_counts_as_progress() -> None:
    visitor = Visitor()
    async with running(visitor) as visits:
        visits.progress_at = before = -1.0
        visits.touch("ns", "a")
        await visitor.results.put(UnavailableError("away"))
        await within(visitor.began.get())
        await eventually_async(lambda: visitor.running == 0)
        assert visits.progress_at == before
        visits.touch("ns", "a")
        await visitor.results.put(VisitResult.SETTLED)
        await eventually_async(lambda: visits.progress_at > before)


async def test_a_bug_outside_a_visit_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` is a supervised task: the process ends with the reason instead of never visiting that cluster again."""
    visitor = Visitor()
    visits = Visits(visitor, distance_s="a bug")  # type: ignore[arg-type]
    visits.touch("ns", "a")
    await visitor.results.put(VisitResult.SETTLED)
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(visits.run(), 30)
    assert caught.group_contains(TypeError)
