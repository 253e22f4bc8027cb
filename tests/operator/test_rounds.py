"""A round costs little for clusters whose control plane answers as before, and touches the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import pytest
from agentserving_operator import rounds as rounds_module
from agentserving_operator.errors import UnavailableError
from agentserving_operator.reconcile import VisitResult
from agentserving_operator.rounds import VISIT_EVERY, Rounds
from agentserving_operator.visits import ClusterKey, Visits
from support.eventually import eventually_async


class Cluster:
    """The clusters that exist, whose control planes have changed, and how often each was visited."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.changed: set[str] = set()
        self.visited: dict[str, int] = {}
        self.unavailable = False
        self.retained: list[ClusterKey] = []
        self.visits = Visits(self._visit, distance_s=0)
        self.rounds = Rounds(self, self.visits, self)

    async def metadata(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None = None
    ) -> tuple[list[dict[str, Any]], str]:
        if self.unavailable:
            raise UnavailableError("away")
        return [{"namespace": "ns", "name": name} for name in self.names], "1"

    async def has_changed(self, namespace: str, name: str) -> bool:
        return name in self.changed

    def retain(self, clusters: Collection[ClusterKey]) -> None:
        self.retained = list(clusters)

    async def _visit(self, namespace: str, name: str) -> VisitResult:
        self.visited[name] = self.visited.get(name, 0) + 1
        return VisitResult.SETTLED if name in self.names else VisitResult.GONE

    async def round(self) -> None:
        """One round, with the visits that it causes."""
        await self.rounds.make_round()
        await eventually_async(lambda: self.visits.are_idle)


@pytest.fixture
async def world() -> AsyncIterator[Cluster]:
    made = Cluster("a", "b")
    task = asyncio.create_task(made.visits.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_each_cluster_is_visited_once_in_so_many_rounds_and_few_in_the_same_one(world: Cluster) -> None:
    world.names = [f"cluster-{number}" for number in range(50)]
    # They are new.
    await world.round()
    assert set(world.visited.values()) == {1}
    most = 0
    for _ in range(VISIT_EVERY):
        before = sum(world.visited.values())
        await world.round()
        most = max(most, sum(world.visited.values()) - before)
    assert set(world.visited.values()) == {2}
    assert most < 10


async def test_a_changed_and_a_new_cluster_are_visited_in_between(
    world: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rounds, "_is_due", lambda *_: False)
    await world.round()
    world.changed.add("b")
    world.names.append("c")
    await world.round()
    assert world.visited == {"a": 1, "b": 2, "c": 1}
    world.names.remove("a")
    await world.round()
    assert world.retained == [("ns", "b"), ("ns", "c")]


async def test_a_round_without_work_is_progress_and_one_that_cannot_list_is_not(world: Cluster) -> None:
    await world.round()
    world.visits.progress_at = before = -1.0
    await world.rounds.make_round()
    assert world.visits.progress_at > before
    world.visits.progress_at, world.unavailable = before, True
    with pytest.raises(UnavailableError):
        await world.rounds.make_round()
    assert world.visits.progress_at == before


async def test_rounds_go_on_after_one_that_could_not_list(world: Cluster) -> None:
    world.unavailable = True
    task = asyncio.create_task(world.rounds.run(0.01))
    world.unavailable = False
    await eventually_async(lambda: world.visited.get("a", 0) >= 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_rounds_are_no_progress_while_a_visit_hangs(world: Cluster) -> None:
    hung = Visits(lambda *_: asyncio.Event().wait(), distance_s=0)  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(hung.run())
    hung.touch("ns", "a")
    await eventually_async(lambda: hung._running)
    hung.progress_at = before = -1.0
    await Rounds(world, hung, world).make_round()
    assert hung.progress_at == before
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_bug_in_a_round_is_raised(world: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor then ends the process: rounds that silently stopped would leave clusters unattended."""
    await world.round()
    monkeypatch.setattr(rounds_module, "VISIT_EVERY", 0)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(world.rounds.run(0.01), 30)
