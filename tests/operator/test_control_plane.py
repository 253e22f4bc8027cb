"""The policy of the spec is put in force in a real control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from agentserving_operator import control_planes as control_plane
from agentserving_operator.control_planes import ControlPlanes, settle
from agentserving_operator.spec.parsing import parse
from agentserving_operator.spec.scheduling import Scheduling
from support.served_plane import ServedPlane


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as made:
        yield made


def scheduling(**given: Any) -> Scheduling:
    return parse(Scheduling, given)


async def test_the_policy_and_balancer_of_the_spec_are_put_in_force_once(served: ServedPlane) -> None:
    address = f"127.0.0.1:{served.port}"
    first = await settle(address, scheduling(policy="fcfs", balancer="RoundRobin"), 5)
    assert first is not None
    assert (first.policy_name, first.policy_generation, first.store_healthy) == ("fcfs", 5, True)
    again = await settle(address, scheduling(policy="fcfs", balancer="RoundRobin"), 6)
    assert again is not None
    assert again.policy_version == first.policy_version
    other = await settle(address, scheduling(policy="fcfs", balancer="LeastUsed"), 7)
    assert other is not None
    assert other.policy_version > first.policy_version


async def test_a_policy_of_ones_own_is_put_in_force_and_recognised(served: ServedPlane) -> None:
    custom = {
        "accounting": "Sum", "order": "AttainedService", "betaMilli": 5000, "maxPreemptions": 3, "unmanagedLevel": 1,
        "levels": [{"upperBoundMilliseconds": 250, "quantumMilliseconds": 250}],
    }  # fmt: skip
    wanted = scheduling(policy="custom", custom=custom)
    first = await settle(f"127.0.0.1:{served.port}", wanted, 1)
    second = await settle(f"127.0.0.1:{served.port}", wanted, 2)
    assert first is not None
    assert second is not None
    assert (first.policy_name, first.policy_version) == ("custom", second.policy_version)
    assert served.plane.policy.policy.levels[0].upper_bound_us == 250_000


async def test_programs_and_engines_that_lag_are_counted(served: ServedPlane) -> None:
    await served.attach("e1")
    await served.open("p1")
    told = await settle(f"127.0.0.1:{served.port}", scheduling(policy="mlfq"), 1)
    assert told is not None
    assert (told.programs, told.pending_engines) == (1, 1)


async def test_a_control_plane_that_is_away_is_no_error() -> None:
    assert await settle("127.0.0.1:1", scheduling(), 1) is None


async def test_what_a_control_plane_says_is_news_when_it_is_another_thing(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{served.port}"
    monkeypatch.setattr(control_plane, "_address", lambda namespace, name: address)
    planes = ControlPlanes()
    # One that was never asked: nothing to compare with.
    assert await planes.is_as_known("ns", "demo")
    await planes.settle(address, scheduling(policy="atlas"), 1)
    assert await planes.is_as_known("ns", "demo")
    await served.open("p1")
    assert not await planes.is_as_known("ns", "demo")
    await planes.settle(address, scheduling(policy="atlas"), 1)
    # A policy set by hand is set back, and that is news.
    await settle(address, scheduling(policy="fcfs"), 1)
    assert not await planes.is_as_known("ns", "demo")
    assert served.plane.policy.policy.name == "atlas"
    planes.retain([])
    assert await planes.is_as_known("ns", "demo")
