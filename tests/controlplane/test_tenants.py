"""TenantService on a live control plane: shares and bounds are durable, and every engine learns the shares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentserving.v1 import engine_service_pb2 as engine_pb
from agentserving.v1 import tenant_service_pb2 as pb
from agentserving.v1 import tenant_service_pb2_grpc as rpc
from agentserving_controlplane import tenant_operations
from agentserving_controlplane.engines.directives import TenantShares, Welcome
from agentserving_controlplane.policy.tenants import TENANTS_PREFIX, TenantRow
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import Write
from controlplane.leader_builders import ACME, GLOBEX, attach, leader, sent
from support.served_plane import PlayedEngine, ServedPlane, refusal


@asynccontextmanager
async def served(store: MemoryStore | None = None) -> AsyncIterator[tuple[ServedPlane, rpc.TenantServiceStub]]:
    async with ServedPlane(store) as plane:
        yield plane, rpc.TenantServiceStub(plane.channel)


async def put(tenants: Any, tenant: str, **fields: int) -> pb.Tenant:
    answer: pb.SetTenantResponse = await tenants.SetTenant(
        pb.SetTenantRequest(tenant=pb.Tenant(tenant=tenant, **fields))  # type: ignore[arg-type]
    )
    return answer.tenant


def weights(shares: engine_pb.TenantShares) -> dict[str, int]:
    return {share.tenant: share.weight for share in shares.shares}


async def test_what_is_not_said_stays_and_the_answer_says_all_of_it() -> None:
    async with served() as (_, tenants):
        first = await put(tenants, "acme", weight=2, max_programs=200)
        assert (first.weight, first.max_programs, first.max_calls) == (2, 200, 0)
        assert all(first.HasField(name) for name in ("weight", "max_calls", "tokens_per_day"))
        second = await put(tenants, "acme", max_calls=40, tokens_per_day=2_000_000)
        assert (second.weight, second.max_programs, second.max_calls) == (2, 200, 40)
        assert await put(tenants, "acme", max_programs=0) == await put(tenants, "acme", max_programs=0)
        listed = await tenants.ListTenants(pb.ListTenantsRequest())
        assert [(each.tenant, each.weight, each.max_programs) for each in listed.tenants] == [("acme", 2, 0)]


async def test_shares_reach_attached_engines_at_once_and_others_when_they_attach() -> None:
    async with served() as (plane, tenants):
        attached = PlayedEngine(plane.engine_service)
        assert weights((await attached.hello("e1")).shares) == {}
        await put(tenants, "acme", weight=3)
        assert weights((await attached.hear("shares")).directive.shares) == {"acme": 3}
        await put(tenants, "globex", max_calls=1)
        assert weights((await PlayedEngine(plane.engine_service).hello("e2")).shares) == {"acme": 3}
        await tenants.RemoveTenant(pb.RemoveTenantRequest(tenant="acme"))
        assert weights((await attached.hear("shares")).directive.shares) == {}


async def test_what_engines_do_not_use_is_not_sent_to_them() -> None:
    async with leader() as plane:
        session = await attach(plane)
        (welcome,) = sent(session, Welcome)
        assert welcome.shares == ()
        await plane.tenant_operations.set(ACME, {"max_calls": 3})
        await plane.tenant_operations.set(ACME, {"weight": 1})
        await plane.tenant_operations.remove(ACME)
        assert not sent(session, TenantShares)


async def test_the_next_leader_knows_and_sends_them() -> None:
    async with served() as (plane, tenants):
        await put(tenants, "acme", weight=2, tokens_per_minute=5)
        await put(tenants, "globex", weight=7)
        await tenants.RemoveTenant(pb.RemoveTenantRequest(tenant="globex"))
        await plane.restart()
        assert weights((await PlayedEngine(plane.engine_service).hello()).shares) == {"acme": 2}
        listed = await tenants.ListTenants(pb.ListTenantsRequest())
        assert [(each.tenant, each.weight, each.tokens_per_minute) for each in listed.tenants] == [("acme", 2, 5)]


async def test_removing_twice_changes_nothing() -> None:
    async with served() as (plane, tenants):
        await put(tenants, "acme", weight=2)
        for _ in range(2):
            await tenants.RemoveTenant(pb.RemoveTenantRequest(tenant="acme"))
        assert plane.plane.tenants.of(ACME) == TenantRow(tenant=ACME)
        await plane.plane.commits.flush()
        assert not [key for key in (await plane.store.load()).items if key.startswith(TENANTS_PREFIX)]


@pytest.mark.parametrize(
    ("tenant", "fields", "reason", "field"),
    [
        ("", {}, "BAD_TENANT", "tenant"),
        ("a b", {}, "BAD_TENANT", "tenant"),
        ("acme", {"weight": 0}, "BAD_WEIGHT", "weight"),
        ("acme", {"weight": 1001}, "BAD_WEIGHT", "weight"),
        ("acme", {"tokens_per_day": 1 << 60}, "BAD_BOUND", "tokens_per_day"),
    ],
)
async def test_an_impossible_value_is_refused_by_its_name(
    tenant: str, fields: dict[str, int], reason: str, field: str
) -> None:
    async with served() as (plane, tenants):
        refused = await refusal(put(tenants, tenant, **fields))
        assert (refused.code, refused.reason, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)
        assert not len(plane.plane.tenants)


async def test_the_number_of_tenants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_operations, "MAX_TENANTS", 2)
    async with served() as (_, tenants):
        await put(tenants, "a")
        await put(tenants, "b")
        refused = await refusal(put(tenants, "c"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_TENANTS")
        await put(tenants, "b", weight=2)


async def test_pages_list_every_tenant_once_by_name() -> None:
    async with served() as (_, tenants):
        names = [f"t{number}" for number in range(7)]
        for name in reversed(names):
            await put(tenants, name)
        found: list[str] = []
        token = ""
        while True:
            page = await tenants.ListTenants(pb.ListTenantsRequest(page_size=3, page_token=token))
            found += [each.tenant for each in page.tenants]
            token = page.next_page_token
            if not token:
                break
        assert found == names
        refused = await refusal(tenants.ListTenants(pb.ListTenantsRequest(page_size=1001)))
        assert refused.reason == "PAGE_TOO_LARGE"


async def test_a_row_that_cannot_be_read_is_the_only_one_lost() -> None:
    store = MemoryStore()
    async with leader(store) as plane:
        await plane.tenant_operations.set(ACME, {"weight": 2})
        for number, broken in enumerate((b"\xff{", b'{"tenant":"globex","weight":0}')):
            plane.commits.put_together([Write(f"{TENANTS_PREFIX}broken{number}", broken)])
    async with leader(store) as plane:
        assert plane.tenants.of(ACME).weight == 2
        assert plane.tenants.of(GLOBEX).weight == 1
