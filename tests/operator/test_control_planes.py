"""The policy of the spec is applied to a real control plane, and a question about it changes nothing."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from agentserving.contract.policy import PLAS
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from agentserving_controlplane.api.admin import AdminServicer
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_operator import control_planes
from agentserving_operator.control_planes import MAX_RESPONSE_BYTES, ControlPlanes, PolicyRefusedError, Target
from agentserving_operator.observe.overview import EngineState, Overview
from agentserving_operator.spec.parsing import parse
from agentserving_operator.spec.scheduling import Scheduling
from support.served_plane import ServedPlane


@pytest.fixture
async def served() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as made:
        yield made


def target(port: int, generation: int = 1, **scheduling: Any) -> Target:
    return Target(address=f"127.0.0.1:{port}", scheduling=parse(Scheduling, scheduling), generation=generation)


async def apply(served: ServedPlane, generation: int = 1, **scheduling: Any) -> Overview:
    overview = await ControlPlanes().apply_policy(target(served.port, generation, **scheduling))
    assert overview is not None
    return overview


async def test_policy_and_balancer_are_applied_once(served: ServedPlane) -> None:
    first = await apply(served, 5, policy="fcfs", balancer="RoundRobin")
    assert (first.policy_name, first.policy_generation, first.store_healthy) == ("fcfs", 5, True)
    again = await apply(served, 6, policy="fcfs", balancer="RoundRobin")
    assert again.policy_version == first.policy_version
    other = await apply(served, 7, policy="fcfs", balancer="LeastUsed")
    assert other.policy_version > first.policy_version


async def test_a_custom_policy_is_applied_and_recognised(served: ServedPlane) -> None:
    custom = {
        "accounting": "Sum", "order": "AttainedService", "betaMilli": 5000, "maxPreemptions": 3, "unmanagedLevel": 1,
        "levels": [{"upperBoundMilliseconds": 250, "quantumMilliseconds": 250}],
    }  # fmt: skip
    first = await apply(served, 1, policy="custom", custom=custom)
    second = await apply(served, 2, policy="custom", custom=custom)
    assert (first.policy_name, first.policy_version) == ("custom", second.policy_version)
    assert served.plane.policy.policy.levels[0].upper_bound_us == 250_000


async def test_programs_and_engines_without_the_policy_are_counted(served: ServedPlane) -> None:
    await served.attach("e1")
    await served.open("p1")
    overview = await apply(served, policy="mlfq")
    assert (overview.programs, overview.pending_engines) == (1, 1)
    assert [(each.engine_id, each.state) for each in overview.engines] == [("e1", EngineState.READY)]


async def test_a_control_plane_that_does_not_answer_is_no_error() -> None:
    planes = ControlPlanes()
    assert await planes.apply_policy(target(1)) is None


async def test_a_policy_that_the_control_plane_refuses_raises_its_words(
    served: ServedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that the spec's rules let through and a newer control plane would not.
    invalid = copy.copy(PLAS)
    object.__setattr__(invalid, "beta_milli", 5)
    monkeypatch.setattr(control_planes, "to_policy", lambda _: invalid)
    with pytest.raises(PolicyRefusedError, match="beta_milli"):
        await ControlPlanes().apply_policy(target(served.port))


@pytest.fixture
async def known(served: ServedPlane, monkeypatch: pytest.MonkeyPatch) -> ControlPlanes:
    """Knows the control plane, as of a visit that applied policy atlas."""
    monkeypatch.setattr(control_planes, "_address", lambda namespace, name: f"127.0.0.1:{served.port}")
    planes = ControlPlanes()
    # One that was never visited: its Deployment will say when it serves.
    assert not await planes.has_changed("ns", "demo")
    await planes.apply_policy(target(served.port, policy="atlas"))
    return planes


async def test_a_control_plane_that_answers_as_before_has_not_changed(known: ControlPlanes) -> None:
    assert not await known.has_changed("ns", "demo")
    assert not await known.has_changed("ns", "demo")


async def test_a_new_program_is_a_change_until_a_visit_saw_it(served: ServedPlane, known: ControlPlanes) -> None:
    await served.open("p1")
    assert await known.has_changed("ns", "demo")
    assert await known.has_changed("ns", "demo")
    await known.apply_policy(target(served.port, policy="atlas"))
    assert not await known.has_changed("ns", "demo")


async def test_asking_about_a_policy_that_was_set_by_hand_does_not_set_it_back(
    served: ServedPlane, known: ControlPlanes
) -> None:
    await apply(served, policy="fcfs")
    assert await known.has_changed("ns", "demo")
    assert served.plane.policy.policy.name == "fcfs"
    await known.apply_policy(target(served.port, policy="atlas"))
    assert served.plane.policy.policy.name == "atlas"


async def test_a_control_plane_that_is_away_has_changed_once(known: ControlPlanes, served: ServedPlane) -> None:
    await served.__aexit__(None, None, None)
    assert await known.has_changed("ns", "demo")
    assert await known.apply_policy(target(served.port, policy="atlas")) is None
    assert not await known.has_changed("ns", "demo")


async def test_control_planes_of_deleted_clusters_are_forgotten(known: ControlPlanes, served: ServedPlane) -> None:
    await served.open("p1")
    known.retain([])
    assert not await known.has_changed("ns", "demo")


class Impostor(AdminServicer):
    """Answers in a control plane's place, with as many engines as it likes."""

    def __init__(self, plane: ControlPlane, engines: int) -> None:
        super().__init__(plane)
        wordy = types_pb2.EngineCapabilities(engine_kind="x" * 60, engine_version="x" * 60, models=["x" * 128] * 2)
        engine = types_pb2.Engine(
            engine_id="demo-engine-0" + "x" * 50, boot_id="x" * 36, address="x" * 60, state_reason="x" * 200,
            capabilities=wordy, load=types_pb2.EngineLoad(running=2**31 - 1, waiting=2**31 - 1, steps=2**40),
        )  # fmt: skip
        self.overview = admin_service_pb2.GetOverviewResponse(engines=[engine] * engines, store_healthy=True)

    async def GetOverview(self, request: Any, context: Any) -> Any:
        return self.overview


@pytest.mark.parametrize(("engines", "is_read"), [(1_000, True), (100_000, False)])
async def test_an_answer_for_a_thousand_engines_is_read_and_one_that_would_fill_the_memory_is_not(
    served: ServedPlane, engines: int, is_read: bool
) -> None:
    server = grpc.aio.server(options=[("grpc.max_send_message_length", 1 << 30)])
    impostor = Impostor(served.plane, engines)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(impostor, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        overview = await ControlPlanes().apply_policy(target(port, policy="fcfs"))
    finally:
        await server.stop(0)
    assert (overview is not None) == is_read
    assert (impostor.overview.ByteSize() < MAX_RESPONSE_BYTES) == is_read
