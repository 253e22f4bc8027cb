"""A cluster is visited by one task at a time, and again when something happened meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from agentserving_operator import visits as visits_module
from agentserving_operator.api_server import UnavailableError
from agentserving_operator.reconcile import Outcome
from agentserving_operator.visits import Visits


class Visitor:
    """Counts; each visit waits until the test lets it end."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[str] = asyncio.Queue()
        self.answers: asyncio.Queue[Outcome | Exception] = asyncio.Queue()
        self.running = self.most = 0

    async def __call__(self, namespace: str, name: str) -> Outcome:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.began.put(f"{namespace}/{name}")
        answer = await self.answers.get()
        self.running -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer


async def within(awaited: Awaitable[object]) -> object:
    return await asyncio.wait_for(awaited, 20)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_occasions_that_come_during_a_visit_are_one_more() -> None:
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    visits.touch("ns", "a")
    assert await within(visitor.began.get()) == "ns/a"
    for _ in range(10):
        visits.touch("ns", "a")
    await visitor.answers.put(Outcome.SETTLED)
    assert await within(visitor.began.get()) == "ns/a"
    await visitor.answers.put(Outcome.SETTLED)
    await until(lambda: visitor.running == 0)
    assert visitor.most == 1
    assert visitor.began.empty()
    await visits.close()


async def test_clusters_do_not_wait_for_each_other() -> None:
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    visits.touch("ns", "a")
    visits.touch("ns", "b")
    assert {await within(visitor.began.get()), await within(visitor.began.get())} == {"ns/a", "ns/b"}
    await visits.close()


async def test_many_clusters_are_not_visited_all_at_once() -> None:
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    for number in range(3 * visits_module.PARALLEL):
        visits.touch("ns", str(number))
    for _ in range(3 * visits_module.PARALLEL):
        await within(visitor.began.get())
        await visitor.answers.put(Outcome.SETTLED)
    assert visitor.most == visits_module.PARALLEL
    await visits.close()


async def test_a_cluster_that_is_gone_is_forgotten() -> None:
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    visits.touch("ns", "a")
    await visitor.answers.put(Outcome.GONE)
    await until(lambda: not visits.clusters)


@pytest.mark.parametrize("failure", [UnavailableError("away"), RuntimeError("a bug"), Outcome.REFUSED, Outcome.PENDING])
async def test_what_failed_or_is_under_way_is_tried_again_by_itself(
    failure: Outcome | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits_module, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(visits_module, "PENDING_S", 0.01)
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    visits.touch("ns", "a")
    await visitor.answers.put(failure)
    await visitor.answers.put(Outcome.SETTLED)
    for _ in range(2):
        await within(visitor.began.get())
    await visits.close()


async def test_only_visits_that_end_count_as_life() -> None:
    visitor = Visitor()
    visits = Visits(visitor, distance_s=0)
    visits.settled_at = before = -1.0
    visits.touch("ns", "a")
    await visitor.answers.put(UnavailableError("away"))
    await within(visitor.began.get())
    await until(lambda: visitor.running == 0)
    assert visits.settled_at == before
    visits.touch("ns", "a")
    await visitor.answers.put(Outcome.SETTLED)
    await until(lambda: visits.settled_at > before)
    await visits.close()
