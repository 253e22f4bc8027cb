"""Of the operators of two releases one looks after a cluster; the other one says so and waits for its end."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from agentserving_operator.errors import RefusedError
from agentserving_operator.manifests import Manifest
from agentserving_operator.observe.claims import is_held
from agentserving_operator.reconcile import Reconciler, VisitResult
from agentserving_operator.spec.crd import KIND
from support.memory_api import MemoryApi
from support.operator_objects import IMAGES, no_scaling, no_tenants

NOW = "2026-01-01T00:01:00Z"
SPEC: dict[str, Any] = {"model": {"name": "tiny"}, "engine": {"type": "Simulator"}, "tls": {"issuer": "None"}}
OURS, OTHERS = "ops/blue-operator", "elsewhere/green-operator"


async def no_answer(target: object) -> None:
    """A control plane that is not there."""


def operator(api: MemoryApi, lease: str = OURS) -> Reconciler:
    return Reconciler(
        api=api, apply_policy=no_answer, apply_tenants=no_tenants, images=IMAGES, now=lambda: NOW,
        random_bytes=lambda n: b"r" * n, lease=lease, scaling=no_scaling(),
    )  # fmt: skip


def lease(renewed: str, holder: str | None = "pod-1") -> Manifest:
    spec = {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}
    return {"kind": "Lease", "metadata": {"name": "green-operator", "namespace": "elsewhere"}, "spec": spec}


def claimed_by(who: str, its_lease: Manifest | None) -> MemoryApi:
    api = MemoryApi()
    api.put_cluster("ns", "demo", SPEC)
    api.objects[KIND, "ns", "demo"]["status"] = {"operator": who, "url": "http://demo"}
    if its_lease is not None:
        api.objects["Lease", "elsewhere", "green-operator"] = its_lease
    return api


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (lease("2026-01-01T00:00:50.123456Z"), True),
        (lease("2026-01-01T00:00:00Z"), False),
        # Released at its end.
        (lease("2026-01-01T00:00:59Z", None), False),
        (lease("2026-01-01T00:00:59Z", ""), False),
        # As the chart makes it.
        ({"spec": {}}, False),
        (None, False),
    ],
)
def test_an_operator_works_while_its_lease_is_renewed(found: Manifest | None, held: bool) -> None:
    assert is_held(found, datetime.datetime.fromisoformat(NOW)) is held


async def test_the_first_operator_records_its_lease() -> None:
    api = MemoryApi()
    api.put_cluster("ns", "demo", SPEC)
    await operator(api).visit("ns", "demo")
    assert api.objects[KIND, "ns", "demo"]["status"]["operator"] == OURS
    assert await operator(api).visit("ns", "demo") is not VisitResult.FOREIGN


async def test_of_two_operators_that_find_a_cluster_in_one_moment_one_makes_it() -> None:
    """Each reads that none is recorded before the other one writes."""
    api = MemoryApi()
    api.put_cluster("ns", "demo", SPEC)
    api.objects["Lease", "elsewhere", "green-operator"] = lease("2026-01-01T00:00:55Z")
    get, green = api.get, operator(api, OTHERS)

    async def then_the_other_one_visits(kind: str, namespace: str, name: str) -> Manifest | None:
        found = await get(kind, namespace, name)
        api.get = get  # type: ignore[method-assign]
        await green.visit("ns", "demo")
        api.writes.clear()
        return found

    api.get = then_the_other_one_visits  # type: ignore[method-assign]
    blue = operator(api)
    assert await blue.visit("ns", "demo") is VisitResult.PENDING
    assert api.writes == ["status AgentServingCluster demo"], "of which the API server refuses the only one"
    assert api.objects[KIND, "ns", "demo"]["status"]["operator"] == OTHERS
    assert await blue.visit("ns", "demo") is VisitResult.FOREIGN


async def test_an_operator_that_was_succeeded_during_a_visit_takes_nothing_back() -> None:
    api = claimed_by(OURS, lease("2026-01-01T00:00:55Z"))
    blue, create = operator(api), api.create

    async def then_it_is_succeeded(manifest: Manifest) -> Manifest | None:
        created = await create(manifest)
        status = {**api.objects[KIND, "ns", "demo"]["status"], "operator": OTHERS}
        named = {"name": "demo", "namespace": "ns"}
        await api.apply_status({"kind": KIND, "metadata": named, "status": status})
        api.create = create  # type: ignore[method-assign]
        return created

    api.create = then_it_is_succeeded  # type: ignore[method-assign]
    assert await blue.visit("ns", "demo") is VisitResult.PENDING
    assert api.objects[KIND, "ns", "demo"]["status"]["operator"] == OTHERS


@pytest.mark.parametrize("mine", [OURS, ""])
async def test_a_cluster_of_another_operator_is_left_alone_with_one_event(mine: str) -> None:
    api = claimed_by(OTHERS, lease("2026-01-01T00:00:55Z"))
    visitor = operator(api, mine)
    for _ in range(3):
        assert await visitor.visit("ns", "demo") is VisitResult.FOREIGN
    assert [write.split()[:2] for write in api.writes] == [["create", "Event"]]
    (event,) = [each for key, each in api.objects.items() if key[0] == "Event"]
    assert (event["type"], event["reason"]) == ("Warning", "OtherOperator")
    assert "green-operator in namespace elsewhere" in event["note"]


@pytest.mark.parametrize("its_lease", [None, lease("2026-01-01T00:00:00Z"), lease("2026-01-01T00:00:59Z", None)])
async def test_an_operator_that_is_gone_is_succeeded(its_lease: Manifest | None) -> None:
    api = claimed_by(OTHERS, its_lease)
    assert await operator(api).visit("ns", "demo") is not VisitResult.FOREIGN
    assert api.objects[KIND, "ns", "demo"]["status"]["operator"] == OURS


async def test_without_the_right_to_see_the_others_lease_the_cluster_is_left_alone() -> None:
    api = claimed_by(OTHERS, None)
    get = api.get

    async def forbidden(kind: str, namespace: str, name: str) -> Manifest | None:
        if kind == "Lease":
            raise RefusedError(403, "Forbidden", "leases is forbidden")
        return await get(kind, namespace, name)

    api.get = forbidden  # type: ignore[method-assign]
    assert await operator(api).visit("ns", "demo") is VisitResult.FOREIGN
