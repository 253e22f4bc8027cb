"""A visit is the whole of a cluster, and a visit that broke off is made good by the next, wherever it broke."""

from __future__ import annotations

import datetime
import os
from typing import Any

import pytest
from agentserving_operator.api_server import RefusedError, UnavailableError
from agentserving_operator.control_planes import PolicyRefusedError
from agentserving_operator.manifests.ticket_key_secret import ROTATE
from agentserving_operator.observe.status import Overview
from agentserving_operator.reconcile import Outcome, World, reconcile
from agentserving_operator.spec.crd import KIND
from agentserving_operator.spec.scheduling import Scheduling
from support.memory_api import MemoryApi
from support.operator_objects import IMAGES

NOW = "2026-01-01T00:00:00Z"
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}}
OTHER: dict[str, Any] = {**SPEC, "engine": {"type": "Simulator", "replicas": 3}, "gateway": {"replicas": 2}}


class Plane:
    """A control plane that takes any policy, or none."""

    def __init__(self, refuses: bool = False, pending: int = 0) -> None:
        self.asked: list[tuple[str, Scheduling]] = []
        self._refuses, self._pending = refuses, pending

    async def __call__(self, address: str, scheduling: Scheduling, generation: int, tls: object) -> Overview | None:
        self.asked.append((address, scheduling))
        if self._refuses:
            raise PolicyRefusedError("policy.levels: no")
        return Overview(
            programs=1, policy_name=scheduling.policy.value, policy_version=2, policy_generation=generation,
            pending_engines=self._pending, store_healthy=True, store_message="",
        )  # fmt: skip


def make_world(api: MemoryApi, plane: Plane | None = None) -> World:
    return World(api=api, settle=plane or Plane(), images=IMAGES, now=lambda: NOW, random_bytes=lambda n: b"r" * n)


def ready(api: MemoryApi, condition: str = "Ready") -> tuple[str, str, str]:
    found = {each["type"]: each for each in api.objects[KIND, "ns", "demo"]["status"]["conditions"]}[condition]
    return found["status"], found["reason"], found["message"]


def serve(api: MemoryApi) -> None:
    """The control plane's pod is ready."""
    api.objects["Deployment", "ns", "demo-control-plane"]["status"] = {"readyReplicas": 1, "replicas": 1}


@pytest.fixture
def api() -> MemoryApi:
    made = MemoryApi()
    made.put_cluster("ns", "demo", SPEC)
    return made


async def test_a_second_visit_writes_nothing(api: MemoryApi) -> None:
    assert await reconcile(make_world(api), "ns", "demo") is Outcome.SETTLED
    written = len(api.writes)
    assert await reconcile(make_world(api), "ns", "demo") is Outcome.SETTLED
    assert len(api.writes) == written


async def test_a_visit_that_breaks_off_at_any_write_is_made_good_by_the_next() -> None:
    async def story(fail_at: int | None) -> MemoryApi:
        api = MemoryApi()
        for spec in (SPEC, OTHER, SPEC):
            api.put_cluster("ns", "demo", spec)
            if fail_at is not None:
                api.fail_at = fail_at
            try:
                await reconcile(make_world(api), "ns", "demo")
            except UnavailableError:
                fail_at = api.fail_at = None
                await reconcile(make_world(api), "ns", "demo")
        return api

    clean = await story(None)
    assert len(clean.writes) > 25
    for number in range(len(clean.writes)):
        assert (await story(number)).state() == clean.state(), clean.writes[number]


async def test_an_invalid_spec_is_told_and_nothing_is_touched(api: MemoryApi) -> None:
    await reconcile(make_world(api), "ns", "demo")
    before = {key: each for key, each in api.state().items() if key[0] != KIND}
    api.put_cluster("ns", "demo", {**SPEC, "engine": {"replicas": -1}})
    assert await reconcile(make_world(api), "ns", "demo") is Outcome.INVALID
    assert ready(api) == ("False", "InvalidSpec", "spec.engine.replicas: must be at least 0, not -1")
    assert {key: each for key, each in api.state().items() if key[0] != KIND} == before


async def test_one_object_that_is_refused_does_not_keep_the_others_away(api: MemoryApi) -> None:
    told = 'services "demo-gateway" is forbidden: exceeded quota: q'
    api.refuse["demo-gateway"] = RefusedError(403, "Forbidden", told)
    assert await reconcile(make_world(api), "ns", "demo") is Outcome.REFUSED
    assert ready(api)[:2] == ("False", "QuotaExceeded")
    assert told in ready(api, "Degraded")[2]
    assert ("StatefulSet", "ns", "demo-engine") in api.objects


async def test_a_cluster_that_is_gone_or_going_is_left_alone(api: MemoryApi) -> None:
    assert await reconcile(make_world(api), "ns", "other") is Outcome.GONE
    api.objects[KIND, "ns", "demo"]["metadata"]["deletionTimestamp"] = NOW
    assert await reconcile(make_world(api), "ns", "demo") is Outcome.GONE
    assert api.writes == []


def annotate(api: MemoryApi, value: str) -> None:
    api.objects[KIND, "ns", "demo"]["metadata"]["annotations"] = {ROTATE: value}


async def test_an_annotation_asks_for_a_new_ticket_key_which_takes_over_step_by_step(api: MemoryApi) -> None:
    clock, seen = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), []
    world = World(
        api=api, settle=Plane(), images=IMAGES, now=lambda: clock.isoformat().replace("+00:00", "Z"),
        random_bytes=os.urandom,
    )  # fmt: skip

    async def visit() -> Any:
        assert await reconcile(world, "ns", "demo") is Outcome.SETTLED
        return dict(api.objects["Secret", "ns", "demo-ticket-key"]["data"])

    old = await visit()
    assert await visit() == old
    annotate(api, "1")
    for _ in range(3):
        seen.append(await visit())
        assert await visit() == seen[-1]
        clock += datetime.timedelta(hours=1)
    assert set(seen[0]) == {"key", "key.next"}
    assert seen[0]["key"] == old["key"]
    assert (seen[1]["key"], seen[1]["key.previous"]) == (seen[0]["key.next"], old["key"])
    assert seen[2]["key"] == seen[1]["key"] != old["key"]


async def test_a_ticket_key_that_may_not_be_changed_is_told(api: MemoryApi) -> None:
    await reconcile(make_world(api), "ns", "demo")
    told = "field is immutable when `immutable` is set"
    api.refuse["demo-ticket-key"] = RefusedError(422, "Invalid", told)
    annotate(api, "1")
    assert await reconcile(make_world(api), "ns", "demo") is Outcome.REFUSED
    assert ready(api) == ("False", "ApplyRefused", f"Secret demo-ticket-key: {told}")


async def test_the_control_plane_is_asked_once_it_serves(api: MemoryApi) -> None:
    plane = Plane()
    await reconcile(make_world(api, plane), "ns", "demo")
    assert plane.asked == []
    serve(api)
    assert await reconcile(make_world(api, plane), "ns", "demo") is Outcome.SETTLED
    ((address, scheduling),) = plane.asked
    assert (address, scheduling.policy) == ("demo-control-plane.ns.svc:7070", "program-plas")
    assert api.objects[KIND, "ns", "demo"]["status"]["policy"]["observedGeneration"] == 1


async def test_engines_that_lag_behind_the_policy_are_asked_about_again(api: MemoryApi) -> None:
    await reconcile(make_world(api), "ns", "demo")
    serve(api)
    assert await reconcile(make_world(api, Plane(pending=1)), "ns", "demo") is Outcome.PENDING


async def test_a_policy_that_is_refused_is_told(api: MemoryApi) -> None:
    await reconcile(make_world(api), "ns", "demo")
    serve(api)
    assert await reconcile(make_world(api, Plane(refuses=True)), "ns", "demo") is Outcome.REFUSED
    assert ready(api) == ("False", "PolicyRefused", "spec.scheduling: the control plane says: policy.levels: no")
