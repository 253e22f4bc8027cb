"""A visit covers the whole cluster, and the next one completes a visit that broke off at any write."""

from __future__ import annotations

import asyncio
import copy
import datetime
import os
from typing import Any

import pytest
from agentserving_operator.control_planes import PolicyRefusedError, Target
from agentserving_operator.errors import RefusedError, UnavailableError
from agentserving_operator.manifests.common import Component, labels
from agentserving_operator.manifests.ticket_key_secret import ROTATE
from agentserving_operator.observe.overview import EngineState, EngineView, Overview
from agentserving_operator.reconcile import Reconciler, VisitResult
from agentserving_operator.spec.crd import KIND
from agentserving_operator.spec.scheduling import Scheduling
from support.memory_api import MemoryApi
from support.operator_objects import IMAGES, no_scaling, no_tenants

NOW = "2026-01-01T00:00:00Z"
# Without certificates, of which no two are equal; test_issuing is about these.
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}, "tls": {"issuer": "None"}}
OTHER: dict[str, Any] = {**SPEC, "engine": {"type": "Simulator", "replicas": 3}, "gateway": {"replicas": 2}}


class Plane:
    """A control plane that takes any policy, or none."""

    def __init__(self, refuses: bool = False, pending: int = 0, engines: tuple[EngineView, ...] = ()) -> None:
        self.asked: list[tuple[str, Scheduling]] = []
        self._refuses, self._pending, self._engines = refuses, pending, engines

    async def __call__(self, target: Target) -> Overview | None:
        self.asked.append((target.address, target.scheduling))
        if self._refuses:
            raise PolicyRefusedError("policy.levels: no")
        return Overview(
            programs=1, policy_name=target.scheduling.policy.value, policy_version=2,
            policy_generation=target.generation, pending_engines=self._pending, store_healthy=True, store_message="",
            engines=self._engines,
        )  # fmt: skip


async def visit(api: MemoryApi, plane: Plane | None = None, name: str = "demo") -> VisitResult:
    """By an operator that has just started."""
    reconciler = Reconciler(
        api=api, apply_policy=plane or Plane(), apply_tenants=no_tenants, images=IMAGES, now=lambda: NOW,
        scaling=no_scaling(), random_bytes=lambda n: b"r" * n,
    )  # fmt: skip
    return await reconciler.visit("ns", name)


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
    assert await visit(api) is VisitResult.SETTLED
    written = len(api.writes)
    assert await visit(api) is VisitResult.SETTLED
    assert len(api.writes) == written


async def test_the_next_visit_completes_one_that_broke_off_at_any_write() -> None:
    async def story(fail_at: int | None) -> MemoryApi:
        api = MemoryApi()
        for spec in (SPEC, OTHER, SPEC):
            api.put_cluster("ns", "demo", spec)
            if fail_at is not None:
                api.fail_at = fail_at
            try:
                await visit(api)
            except UnavailableError:
                fail_at = api.fail_at = None
                await visit(api)
        return api

    clean = await story(None)
    assert len(clean.writes) > 25
    for number in range(len(clean.writes)):
        assert (await story(number)).state() == clean.state(), clean.writes[number]


async def test_an_invalid_spec_is_reported_and_nothing_is_changed(api: MemoryApi) -> None:
    await visit(api)
    before = {key: each for key, each in api.state().items() if key[0] != KIND}
    api.put_cluster("ns", "demo", {**SPEC, "engine": {"replicas": -1}})
    assert await visit(api) is VisitResult.INVALID
    assert ready(api) == ("False", "InvalidSpec", "spec.engine.replicas: must be at least 0, not -1")
    assert {key: each for key, each in api.state().items() if key[0] != KIND} == before


async def test_a_refused_object_does_not_prevent_the_others(api: MemoryApi) -> None:
    message = 'services "demo-gateway" is forbidden: exceeded quota: q'
    api.refuse["demo-gateway"] = RefusedError(403, "Forbidden", message)
    assert await visit(api) is VisitResult.REFUSED
    assert ready(api)[:2] == ("False", "QuotaExceeded")
    assert message in ready(api, "Degraded")[2]
    assert ("StatefulSet", "ns", "demo-engine") in api.objects


async def test_a_deleted_cluster_is_left_alone(api: MemoryApi) -> None:
    assert await visit(api, name="other") is VisitResult.GONE
    api.objects[KIND, "ns", "demo"]["metadata"]["deletionTimestamp"] = NOW
    assert await visit(api) is VisitResult.GONE
    assert api.writes == []


def annotate(api: MemoryApi, value: str) -> None:
    api.objects[KIND, "ns", "demo"]["metadata"]["annotations"] = {ROTATE: value}


async def test_an_annotation_requests_a_ticket_key_which_takes_over_step_by_step(api: MemoryApi) -> None:
    clock, seen = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), []
    reconciler = Reconciler(
        api=api, apply_policy=Plane(), apply_tenants=no_tenants, images=IMAGES, scaling=no_scaling(),
        now=lambda: clock.isoformat().replace("+00:00", "Z"),
        random_bytes=os.urandom,
    )  # fmt: skip

    async def keys() -> Any:
        assert await reconciler.visit("ns", "demo") is VisitResult.SETTLED
        return dict(api.objects["Secret", "ns", "demo-ticket-key"]["data"])

    old = await keys()
    assert await keys() == old
    annotate(api, "1")
    for _ in range(3):
        seen.append(await keys())
        assert await keys() == seen[-1]
        clock += datetime.timedelta(hours=1)
    names = ("key", "public", "gateway-key", "gateway-public")
    assert set(seen[0]) == {*names, *(f"{name}.next" for name in names)}
    assert seen[0]["key"] == old["key"]
    assert (seen[1]["key"], seen[1]["key.previous"]) == (seen[0]["key.next"], old["key"])
    assert seen[2]["key"] == seen[1]["key"] != old["key"]


async def test_a_ticket_key_that_cannot_be_changed_is_reported(api: MemoryApi) -> None:
    await visit(api)
    message = "field is immutable when `immutable` is set"
    api.refuse["demo-ticket-key"] = RefusedError(422, "Invalid", message)
    annotate(api, "1")
    assert await visit(api) is VisitResult.REFUSED
    assert ready(api) == ("False", "ApplyRefused", f"Secret demo-ticket-key: {message}")


async def test_the_policy_is_applied_once_the_control_plane_serves(api: MemoryApi) -> None:
    plane = Plane()
    await visit(api, plane)
    assert plane.asked == []
    serve(api)
    assert await visit(api, plane) is VisitResult.SETTLED
    ((address, scheduling),) = plane.asked
    assert (address, scheduling.policy) == ("demo-control-plane.ns.svc:7070", "auto")
    assert api.objects[KIND, "ns", "demo"]["status"]["policy"]["observedGeneration"] == 1


async def test_engines_that_have_not_acknowledged_the_policy_cause_another_visit(api: MemoryApi) -> None:
    await visit(api)
    serve(api)
    assert await visit(api, Plane(pending=1)) is VisitResult.PENDING


async def test_a_refused_policy_is_reported(api: MemoryApi) -> None:
    await visit(api)
    serve(api)
    assert await visit(api, Plane(refuses=True)) is VisitResult.REFUSED
    assert ready(api) == ("False", "PolicyRefused", "spec.scheduling: refused by the control plane: policy.levels: no")


async def test_an_engine_that_is_down_behind_a_ready_pod_is_reported(api: MemoryApi) -> None:
    await visit(api)
    serve(api)
    pod = {
        "kind": "Pod",
        "metadata": {"name": "demo-engine-0", "namespace": "ns", "labels": labels("demo", Component.ENGINE)},
        "status": {},
    }
    api._store(pod)
    api.objects["StatefulSet", "ns", "demo-engine"]["status"] = {"replicas": 1, "readyReplicas": 1}
    down = Plane(engines=(EngineView("demo-engine-0", EngineState.DOWN, "exit code 139"),))
    assert await visit(api, down) is VisitResult.SETTLED
    status, reason, message = ready(api, "EnginesReady")
    assert (status, reason) == ("False", "EngineDown")
    assert "engine demo-engine-0 is DOWN: exit code 139" in message
    assert ready(api, "Degraded")[:2] == ("True", "EngineDown")


async def test_a_webhook_that_rewrites_our_fields_costs_one_write(api: MemoryApi) -> None:
    reconciler = Reconciler(
        api=api, apply_policy=Plane(), apply_tenants=no_tenants, images=IMAGES, now=lambda: NOW,
        scaling=no_scaling(), random_bytes=lambda n: b"r" * n,
    )  # fmt: skip
    apply = api.apply

    async def rewriting(manifest: Any) -> Any:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            manifest = copy.deepcopy(manifest)
            for each in manifest["spec"]["template"]["spec"]["containers"]:
                each["image"] = f"mirror.test/{each['image']}"
                each["env"].append({"name": "HTTP_PROXY", "value": "http://proxy"})
        return await apply(manifest)

    api.apply = rewriting  # type: ignore[method-assign]
    await reconciler.visit("ns", "demo")
    written = len(api.writes)
    for _ in range(2):
        await reconciler.visit("ns", "demo")
    assert len(api.writes) == written
    api.put_cluster("ns", "demo", OTHER)
    await reconciler.visit("ns", "demo")
    assert api.objects["StatefulSet", "ns", "demo-engine"]["spec"]["replicas"] == 3


async def test_an_inference_pool_goes_when_it_is_no_longer_wanted() -> None:
    api = MemoryApi()
    api.put_cluster("ns", "demo", {**SPEC, "gateway": {"inferencePool": {"enabled": True}}})
    await visit(api)
    assert ("InferencePool", "ns", "demo") in api.objects
    api.put_cluster("ns", "demo", SPEC)
    await visit(api)
    assert not [key for key in api.objects if key[0] == "InferencePool" or "endpoint-picker" in key[2]]


async def test_ways_in_go_when_they_are_no_longer_wanted_and_those_of_others_stay() -> None:
    api = MemoryApi()
    ways = {"ingress": {"hosts": ["a.example"]}, "httpRoute": {"parentRefs": [{"name": "public"}]}}
    api.put_cluster("ns", "demo", {**SPEC, "gateway": ways})
    await visit(api)
    there = {("Ingress", "ns", "demo-gateway"), ("HTTPRoute", "ns", "demo")}
    assert there <= set(api.objects)
    api.put_cluster("ns", "demo", SPEC)
    await visit(api)
    assert not there & set(api.objects)
    foreign = {"kind": "HTTPRoute", "metadata": {"name": "demo", "namespace": "ns", "uid": "other"}}
    api.objects["HTTPRoute", "ns", "demo"] = foreign
    await visit(api)
    assert api.objects["HTTPRoute", "ns", "demo"] == foreign


async def test_a_route_that_no_gateway_serves_is_looked_at_again_and_does_not_make_the_cluster_unready() -> None:
    api = MemoryApi()
    api.put_cluster("ns", "demo", {**SPEC, "gateway": {"httpRoute": {"parentRefs": [{"name": "public"}]}}})
    assert await visit(api) is VisitResult.REFUSED
    assert ready(api, "EntrancesReady")[:2] == ("False", "RouteNotAccepted")
    assert ready(api)[1] != "RouteNotAccepted"
    accepted = [{"type": kind, "status": "True"} for kind in ("Accepted", "ResolvedRefs")]
    api.objects["HTTPRoute", "ns", "demo"]["status"] = {
        "parents": [{"parentRef": {"name": "public", "namespace": "ns"}, "conditions": accepted}]
    }
    assert await visit(api) is not VisitResult.REFUSED
    assert ready(api, "EntrancesReady") == ("True", "Available", "HTTPRoute public")


def with_cluster(spec: dict[str, Any]) -> MemoryApi:
    api = MemoryApi()
    api.put_cluster("ns", "demo", spec)
    return api


async def asks_for_keys(api: MemoryApi) -> bool:
    await visit(api)
    (one,) = api.objects["Deployment", "ns", "demo-control-plane"]["spec"]["template"]["spec"]["containers"]
    status = api.objects[KIND, "ns", "demo"]["status"]
    assert (status["clientAuth"] == "Keys") == ("--client-auth" in one["args"])
    return bool(status["clientAuth"] == "Keys")


@pytest.mark.parametrize(
    ("auth", "status", "expected"),
    [
        ({}, {}, True),
        # Its last status is of an operator from before keys existed.
        ({}, {"url": "http://demo"}, False),
        ({"clients": "Keys"}, {"url": "http://demo"}, True),
        ({"clients": "None"}, {}, False),
        # The default of an earlier CRD, stored with the object.
        ({"clients": "None"}, {"url": "http://demo"}, False),
        ({}, {"url": "http://demo", "clientAuth": "Keys"}, True),
        # What an invalid spec leaves behind says nothing.
        ({}, {"observedGeneration": 1}, True),
    ],
)
def test_new_clusters_ask_for_keys_and_existing_ones_stay_as_they_were(
    auth: dict[str, Any], status: dict[str, Any], expected: bool
) -> None:
    spec = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}, "auth": auth}
    api = with_cluster(spec)
    api.objects[KIND, "ns", "demo"]["status"] = status
    for _ in range(2):
        assert asyncio.run(asks_for_keys(api)) is expected


def test_a_cluster_without_certificates_has_no_keys_unless_it_asks_for_them() -> None:
    assert asyncio.run(asks_for_keys(with_cluster(SPEC))) is False
