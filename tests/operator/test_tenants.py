"""AgentServingTenants: what they say is set at the control plane of their cluster, and removed with them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving import AsyncClient
from agentserving.client.values import TenantSettings
from agentserving_operator.control_planes import ControlPlanes, Target
from agentserving_operator.errors import RefusedError, UnavailableError
from agentserving_operator.observe.overview import Overview
from agentserving_operator.observe.tenants import MAX_TENANTS, Outcome, plan
from agentserving_operator.reconcile import Reconciler, VisitResult
from agentserving_operator.spec.crd import API_VERSION, KIND, TENANT_KIND
from agentserving_operator.spec.parsing import SpecError, parse
from agentserving_operator.spec.scheduling import Scheduling
from agentserving_operator.spec.tenant import TenantSpec
from support.memory_api import NOW, MemoryApi
from support.operator_objects import IMAGES, no_scaling
from support.served_plane import ServedPlane

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}, "tls": {"issuer": "None"}}
RESEARCH: dict[str, Any] = {"clusterName": "demo", "weight": 2, "limits": {"programs": 200, "tokensPerDay": 2_000_000}}


class Plane:
    """A control plane that knows tenants by name. `refuses`: names; `error`: why it does nothing."""

    def __init__(self) -> None:
        self.there: dict[str, TenantSettings] = {}
        self.writes = 0
        self.refuses: dict[str, str] = {}
        self.error = ""

    async def policy(self, target: Target) -> Overview | None:
        return Overview(
            programs=0, policy_name="program-plas", policy_version=1, policy_generation=target.generation,
            pending_engines=0, store_healthy=True, store_message="",
        )  # fmt: skip

    async def tenants(
        self, target: Target, wanted: Mapping[str, TenantSettings], forget: Collection[str]
    ) -> Outcome:  # fmt: skip
        if self.error:
            return Outcome(refused={}, forgotten=frozenset(), error=self.error)
        for name, settings in wanted.items():
            if name not in self.refuses and self.there.get(name) != settings:
                self.there[name] = settings
                self.writes += 1
        for name in forget:
            self.writes += self.there.pop(name, None) is not None
        return Outcome(refused=self.refuses, forgotten=frozenset(forget))


class Visited:
    """A cluster whose control plane serves, visited by an operator that remembers nothing."""

    def __init__(self) -> None:
        self.api, self.plane = MemoryApi(), Plane()
        self.api.put_cluster("ns", "demo", SPEC)

    async def visit(self) -> VisitResult:
        reconciler = Reconciler(
            api=self.api, apply_policy=self.plane.policy, apply_tenants=self.plane.tenants, images=IMAGES,
            scaling=no_scaling(), now=lambda: NOW, random_bytes=lambda n: b"r" * n,
        )  # fmt: skip
        return await reconciler.visit("ns", "demo")

    async def settle(self) -> None:
        """Visits until nothing is pending."""
        for _ in range(5):
            if await self.visit() is VisitResult.SETTLED:
                return
        raise AssertionError("it never settles")

    def ready(self, name: str) -> tuple[str, str]:
        (condition,) = self.api.objects[TENANT_KIND, "ns", name]["status"]["conditions"]
        return condition["status"], condition["reason"]

    def recorded(self) -> list[str]:
        return list(self.api.objects[KIND, "ns", "demo"]["status"].get("tenants", []))


@pytest.fixture
async def visited() -> Visited:
    found = Visited()
    await found.visit()
    found.api.objects["Deployment", "ns", "demo-control-plane"]["status"] = {"readyReplicas": 1}
    return found


async def test_what_an_object_says_is_set_and_reported(visited: Visited) -> None:
    visited.api.put_tenant("ns", "research", RESEARCH)
    await visited.settle()
    found = visited.plane.there["research"]
    assert (found.weight, found.max_programs, found.tokens_per_day, found.max_calls) == (2, 200, 2_000_000, 0)
    assert visited.ready("research") == ("True", "InForce")
    budget = {"tokens": 200_000, "engineSeconds": 300}
    visited.api.put_tenant("ns", "research", {**RESEARCH, "weight": 5, "limits": {}, "programBudget": budget})
    await visited.settle()
    found = visited.plane.there["research"]
    assert (found.weight, found.max_programs) == (5, 0)
    assert (found.program_tokens, found.program_engine_s, found.program_calls) == (200_000, 300, 0)
    writes, there = visited.plane.writes, list(visited.api.writes)
    await visited.settle()
    assert (visited.plane.writes, visited.api.writes) == (writes, there)


async def test_a_deleted_object_sets_its_tenant_back_and_no_other(visited: Visited) -> None:
    visited.api.put_tenant("ns", "research", RESEARCH)
    visited.api.put_tenant("ns", "ops", {"clusterName": "demo"})
    await visited.settle()
    # By hand: `agentserving tenant set`.
    visited.plane.there["by-hand"] = visited.plane.there["research"]
    del visited.api.objects[TENANT_KIND, "ns", "research"]
    await visited.settle()
    assert set(visited.plane.there) == {"ops", "by-hand"}
    assert visited.recorded() == ["ops"]


async def test_a_tenant_that_is_deleted_while_the_control_plane_is_away_is_set_back_later(visited: Visited) -> None:
    visited.api.put_tenant("ns", "research", RESEARCH)
    await visited.settle()
    del visited.api.objects[TENANT_KIND, "ns", "research"]
    visited.plane.error = "no answer"
    assert await visited.visit() is VisitResult.PENDING
    assert visited.recorded() == ["research"]
    visited.plane.error = ""
    await visited.settle()
    assert (visited.plane.there, visited.recorded()) == ({}, [])


@pytest.mark.parametrize("writes", range(4))
async def test_an_operator_that_ends_at_any_write_leaves_no_tenant_behind(visited: Visited, writes: int) -> None:
    visited.api.put_tenant("ns", "research", RESEARCH)
    visited.api.fail_at = len(visited.api.writes) + writes
    with contextlib.suppress(UnavailableError):
        await visited.settle()
    visited.api.fail_at = None
    del visited.api.objects[TENANT_KIND, "ns", "research"]
    await visited.settle()
    assert (visited.plane.there, visited.recorded()) == ({}, [])


async def test_the_older_of_two_objects_for_one_tenant_counts(visited: Visited) -> None:
    visited.api.put_tenant("ns", "a", {**RESEARCH, "tenant": "research"}, created="2026-02-02T00:00:00Z")
    visited.api.put_tenant("ns", "b", {**RESEARCH, "tenant": "research", "weight": 7})
    await visited.settle()
    assert visited.plane.there["research"].weight == 7
    assert (visited.ready("a"), visited.ready("b")) == (("False", "TenantTaken"), ("True", "InForce"))
    del visited.api.objects[TENANT_KIND, "ns", "b"]
    await visited.settle()
    assert visited.plane.there["research"].weight == 2
    assert visited.ready("a") == ("True", "InForce")


async def test_what_is_in_the_way_is_said(visited: Visited) -> None:
    visited.api.put_tenant("ns", "research", RESEARCH)
    visited.api.put_tenant("ns", "wrong", {"clusterName": "demo", "weight": 0})
    visited.api.put_tenant("ns", "elsewhere", {"clusterName": "other"})
    visited.plane.refuses = {"research": "a cluster has at most 10000 tenants"}
    await visited.settle()
    assert visited.ready("research") == ("False", "TenantRefused")
    assert visited.ready("wrong") == ("False", "InvalidSpec")
    assert "status" not in visited.api.objects[TENANT_KIND, "ns", "elsewhere"]
    visited.plane.refuses, visited.plane.error = {}, "no answer"
    assert await visited.visit() is VisitResult.PENDING
    assert visited.ready("research") == ("False", "NotReachable")
    del visited.api.objects[KIND, "ns", "demo"]
    assert await visited.visit() is VisitResult.GONE
    assert visited.ready("research") == ("False", "ClusterMissing")


async def test_until_its_control_plane_serves_a_tenant_waits_for_it() -> None:
    visited = Visited()
    visited.api.put_tenant("ns", "research", RESEARCH)
    await visited.visit()
    assert visited.ready("research") == ("False", "NotReachable")


async def test_without_the_kind_clusters_are_visited_all_the_same(visited: Visited) -> None:
    find = visited.api.find

    async def without_the_kind(kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> Any:
        if kind == TENANT_KIND:
            raise RefusedError(404, "", "404 page not found")
        return await find(kind, namespace, labels)

    visited.api.find = without_the_kind  # type: ignore[method-assign]
    await visited.settle()
    del visited.api.objects[KIND, "ns", "demo"]
    assert await visited.visit() is VisitResult.GONE


def test_the_example_is_valid() -> None:
    found = yaml.safe_load((ROOT / "examples/tenant.yaml").read_text())
    assert (found["apiVersion"], found["kind"]) == (API_VERSION, TENANT_KIND)
    assert parse(TenantSpec, found["spec"]).limits.programs == 200


def test_more_than_a_status_can_record_is_refused() -> None:
    objects = [
        {"metadata": {"name": f"t{i}"}, "spec": {"clusterName": "demo"}} for i in range(MAX_TENANTS + 1)
    ]  # fmt: skip
    found = plan(objects, [])
    assert len(found.new) == MAX_TENANTS
    assert [(name, each.reason) for name, each in found.troubles.items()] == [(f"t{MAX_TENANTS}", "TooManyTenants")]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.clusterName"),
        ({"clusterName": "demo", "weight": 1001}, "spec.weight"),
        ({"clusterName": "demo", "tenant": "a b"}, "spec.tenant"),
        ({"clusterName": "demo", "limits": {"programs": 0}}, "spec.limits.programs"),
        ({"clusterName": "demo", "serviceClass": "x"}, "spec.serviceClass"),
    ],
)
def test_an_invalid_spec_names_the_field(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match=field):
        parse(TenantSpec, spec)


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as made:
        yield made


async def test_a_real_control_plane_has_what_is_wanted_and_not_what_is_to_be_forgotten(served: ServedPlane) -> None:
    target = Target(address=f"127.0.0.1:{served.port}", scheduling=parse(Scheduling, {}), generation=1)
    planes, wanted = ControlPlanes(), plan([{"metadata": {"name": "research"}, "spec": RESEARCH}], []).new
    done = await planes.apply_tenants(target, wanted, ["unknown"])
    assert done == Outcome(refused={}, forgotten=frozenset({"unknown"}))
    async with AsyncClient(target.address) as client:
        assert [each async for each in client.list_tenants()] == [wanted["research"]]
        assert (await planes.apply_tenants(target, {}, ["research"])).forgotten == {"research"}
        assert [each async for each in client.list_tenants()] == []


async def test_a_control_plane_that_does_not_answer_is_no_error() -> None:
    away = Target(address="127.0.0.1:1", scheduling=parse(Scheduling, {}), generation=1)
    assert (await ControlPlanes().apply_tenants(away, {}, ["research"])).error
