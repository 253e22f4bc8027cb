"""What one leader writes fits into the transactions of a real etcd, and a crash between two of them loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from agentserving.contract.policy import MAX_CLASSES, MAX_LEVELS, Accounting, Level, Policy
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.policy.in_force import PolicyChange
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.table.reports import CallReport
from controlplane.table_builders import admit, at, key, open_program, report_of
from support.etcd_server import EtcdServer
from support.served_plane import SETTINGS

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(240)]
CALLS, SUB_AGENTS = 4000, 150


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.close()


async def leader(store: EtcdStore) -> ControlPlane:
    """A leader that takes the place of an earlier one of the same name."""
    plane = ControlPlane(SETTINGS, store, await store.acquire("a"), lambda error: None)
    await plane.recover(store)
    return plane


async def crash(plane: ControlPlane, store: EtcdStore) -> None:
    """Ends without writing anything more, and without giving up the lease."""
    await plane.commits.close(0)
    await store.close()


async def admit_all(plane: ControlPlane) -> list[CallReport]:
    """Admits calls of a root and of its sub-agents, durably; returns their final reports."""
    table = plane.table
    table.accounting = Accounting.SUM
    open_program(table, "p")
    calls = [("p", admit(table, "p")) for _ in range(CALLS)]
    for number in range(SUB_AGENTS):
        open_program(table, f"p/{number}", parent="p")
        calls.append((f"p/{number}", admit(table, f"p/{number}")))
    await plane.settled()
    return [report_of(call, name, 1, root="p") for name, call in calls]


@pytest.mark.parametrize("landed", [0, 1, 3, None])
async def test_thousands_of_ends_before_a_commit_land_and_each_is_charged_once(
    etcd: EtcdServer, landed: int | None
) -> None:
    """The leader dies after `landed` transactions of the ends."""
    prefix = f"/groups/{landed}"
    store = EtcdStore((etcd.endpoint,), prefix, lease_s=60)
    plane = await leader(store)
    reports = await admit_all(plane)
    for report in reports:
        plane.table.report(report, at(1))
    before, number = plane.commits.commits, plane.settle()
    async with asyncio.timeout(60):
        if landed is None:
            await plane.commits.durable(number)
        while landed is not None and plane.commits.commits < before + landed:
            await asyncio.sleep(0)
    assert plane.commits.fenced is None
    await crash(plane, store)

    store = EtcdStore((etcd.endpoint,), prefix, lease_s=60)
    plane = await leader(store)
    table = plane.table
    table.accounting = Accounting.SUM
    root = table.rows[key("p")]
    assert root.attained_service_us == sum(row.total_service_us for row in table.rows.values())
    for report in reports:
        table.report(report, at(2))
    assert root.attained_service_us == len(reports)
    assert table.open_calls == 0
    await crash(plane, store)


def largest_policy(name: str) -> Policy:
    def levels(first: int) -> tuple[Level, ...]:
        bounds = [2**62 + first * MAX_LEVELS + n for n in range(MAX_LEVELS - 1)]
        return (*(Level(bound, 2**62, 1000) for bound in bounds), Level(rank=1000))

    classes = tuple((f"{n:0128}", levels(n)) for n in range(MAX_CLASSES))
    return Policy(name=name, levels=levels(0), classes=classes)


async def test_many_changes_to_the_largest_policy_are_durable(etcd: EtcdServer) -> None:
    store = EtcdStore((etcd.endpoint,), "/groups/policies", lease_s=60)
    plane = await leader(store)
    for number in range(20):
        change = PolicyChange(policy=largest_policy(f"v{number}"), idempotency_key=f"k{number}", digest="d")
        version = await plane.apply_policy(change)
        assert plane.commits.fenced is None
    assert await plane.apply_policy(change) == version, "the newest request is recognised when it is repeated"
    await crash(plane, store)

    store = EtcdStore((etcd.endpoint,), "/groups/policies", lease_s=60)
    plane = await leader(store)
    assert plane.policy == version
    assert await plane.apply_policy(replace(change)) == version
    await crash(plane, store)
