"""A round asks little of clusters that say what they said before, and touches the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from agentserving_operator.api_server import UnavailableError
from agentserving_operator.handlers import clusters_of
from agentserving_operator.reconcile import Outcome
from agentserving_operator.rounds import WHOLE_EVERY, Rounds
from agentserving_operator.visits import Key, Visits


class World:
    """Clusters there are, whose control planes have news, and how often each was visited."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.news: set[str] = set()
        self.visited: dict[str, int] = {}
        self.away = False
        self.retained: list[Key] = []
        self.visits = Visits(self._visit, distance_s=0)
        self.rounds = Rounds(self, self.visits, self)

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        if self.away:
            raise UnavailableError("away")
        return [{"metadata": {"namespace": "ns", "name": name}} for name in self.names]

    async def is_as_known(self, namespace: str, name: str) -> bool:
        return name not in self.news

    def retain(self, clusters: Collection[Key]) -> None:
        self.retained = list(clusters)

    async def _visit(self, namespace: str, name: str) -> Outcome:
        self.visited[name] = self.visited.get(name, 0) + 1
        return Outcome.SETTLED if name in self.names else Outcome.GONE

    async def round(self) -> None:
        """One, with the visits that it causes."""
        await self.rounds.make()
        await until(lambda: self.visits.are_idle)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_first_round_and_each_tenth_visit_all_the_others_nobody() -> None:
    world = World("a", "b")
    for _ in range(WHOLE_EVERY):
        await world.round()
    assert world.visited == {"a": 1, "b": 1}
    await world.round()
    assert world.visited == {"a": 2, "b": 2}
    await world.visits.close()


async def test_a_cluster_with_news_and_a_new_one_are_visited_in_between() -> None:
    world = World("a", "b")
    await world.round()
    world.news.add("b")
    world.names.append("c")
    await world.round()
    assert world.visited == {"a": 1, "b": 2, "c": 1}
    world.names.remove("a")
    await world.round()
    assert world.retained == [("ns", "b"), ("ns", "c")]
    await world.visits.close()


async def test_a_round_with_nothing_to_do_is_a_sign_of_life_and_one_that_cannot_list_is_none() -> None:
    world = World("a")
    await world.round()
    world.visits.settled_at = before = -1.0
    await world.rounds.make()
    assert world.visits.settled_at > before
    world.visits.settled_at, world.away = before, True
    with pytest.raises(UnavailableError):
        await world.rounds.make()
    assert world.visits.settled_at == before
    await world.visits.close()


async def test_a_visit_that_hangs_is_no_life_whatever_rounds_do() -> None:
    world = World("a")
    await world.round()
    hung = Visits(lambda *_: asyncio.Event().wait(), distance_s=0)  # type: ignore[arg-type, return-value]
    hung.touch("ns", "a")
    await asyncio.sleep(0)
    hung.settled_at = before = -1.0
    await Rounds(world, hung, world).make()
    assert hung.settled_at == before
    await hung.close()
    await world.visits.close()


def test_an_object_belongs_to_the_cluster_of_its_owner_and_to_that_of_its_labels() -> None:
    owner = {"ownerReferences": [{"kind": "AgentServingCluster", "name": "a"}]}
    labels = {
        "labels": {"app.kubernetes.io/managed-by": "agentserving-operator", "app.kubernetes.io/instance": "b"}
    }  # fmt: skip
    assert clusters_of(owner) == {"a"}
    assert clusters_of(labels) == {"b"}
    assert clusters_of(owner | labels) == {"a", "b"}
    assert clusters_of({"labels": {"app.kubernetes.io/instance": "b"}}) == set()
    assert clusters_of({"ownerReferences": [{"kind": "ReplicaSet", "name": "a"}]}) == set()
