"""An operator with a real control plane: engines come for what programs need, and leave without breaking a call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from agentserving.v1 import admin_service_pb2 as apb
from agentserving.v1 import call_service_pb2 as cpb
from agentserving.v1 import types_pb2
from agentserving_operator.control_planes import ControlPlanes, Target
from agentserving_operator.manifests.common import Component, labels
from agentserving_operator.observe.overview import Overview
from agentserving_operator.reconcile import Reconciler, VisitResult
from agentserving_operator.scaler import SILENT_S, Scaler
from agentserving_operator.scaling.plan import Answer
from agentserving_operator.spec.crd import KIND
from support.eventually import eventually_async
from support.memory_api import MemoryApi
from support.operator_objects import IMAGES, no_tenants
from support.served_plane import PlayedEngine, ServedPlane

NOW = "2026-01-01T00:00:00Z"
# 1,600 tokens of context.
SMALL = types_pb2.EngineCapabilities(max_num_seqs=8, block_size=16, num_blocks=100)


class Rerouted(ControlPlanes):
    """All control planes are at one port; None = none answers."""

    def __init__(self, port: int | None) -> None:
        super().__init__()
        self.port = port
        self.drains: list[tuple[str, bool]] = []

    def _there(self, target: Target) -> Target:
        return replace(target, address=f"127.0.0.1:{self.port or 1}")

    async def apply_policy(self, target: Target) -> Overview | None:
        return await super().apply_policy(self._there(target))

    async def need(self, target: Target) -> Answer | None:
        return await super().need(self._there(target))

    async def drain(self, target: Target, engine_id: str, drained: bool) -> bool:
        self.drains.append((engine_id, drained))
        return await super().drain(self._there(target), engine_id, drained)


class Scaled:
    """A cluster that an operator visits whenever its scaler asks for it; time passes when a test says so."""

    def __init__(self, plane: ServedPlane, replicas: int = 1, **autoscaling: Any) -> None:
        self.plane, self.api, self.clock_s, self.touched = plane, MemoryApi(), 1000.0, True
        self.planes = Rerouted(plane.port)
        self.spec: dict[str, Any] = {
            "model": {"name": "tiny"}, "tls": {"issuer": "None"},
            "engine": {
                "type": "Simulator", "replicas": replicas, "autoscaling": {"max": 4, "scaleInSeconds": 0, **autoscaling}
            },
        }  # fmt: skip
        self.engines: dict[str, PlayedEngine] = {}
        self.restart()

    def restart(self) -> None:
        """Another operator."""
        self.scaler = Scaler(self.planes, self._touch, lambda: self.clock_s)
        self.reconciler = Reconciler(
            api=self.api, apply_policy=self.planes.apply_policy, apply_tenants=no_tenants, images=IMAGES,
            now=lambda: NOW, random_bytes=lambda n: b"r" * n, scaling=self.scaler,
        )  # fmt: skip

    def _touch(self, namespace: str, name: str) -> None:
        self.touched = True

    def apply(self, **engine: Any) -> None:
        """The user changes fields of spec.engine; None removes one."""
        merged = {**self.spec["engine"], **engine}
        self.spec = {**self.spec, "engine": {key: each for key, each in merged.items() if each is not None}}
        self.api.put_cluster("ns", "demo", self.spec)
        self.touched = True

    async def start(self) -> None:
        """The first visits, until the control plane serves and each engine has attached."""
        self.apply()
        await self.visit()
        self.api.objects["Deployment", "ns", "demo-control-plane"]["status"] = {"readyReplicas": 1, "replicas": 1}
        await self.visit()

    async def visit(self) -> None:
        """A visit, what the StatefulSet's controller makes of it, and what watches see of both."""
        self.touched, before = False, (self.status, set(self.engines))
        assert await self.reconciler.visit("ns", "demo") is not VisitResult.INVALID
        names = {f"demo-engine-{each}" for each in self.ordinals}
        for name in names - self.engines.keys():
            self.engines[name] = await self.plane.attach(name, capabilities=SMALL)
            metadata = {"name": name, "namespace": "ns", "labels": labels("demo", Component.ENGINE)}
            self.api.objects["Pod", "ns", name] = {"kind": "Pod", "metadata": metadata}
        for name in self.engines.keys() - names:
            # `drained` outlives the engine.
            self.engines.pop(name).stream.cancel()
            del self.api.objects["Pod", "ns", name]
        self.touched |= before != (self.status, set(self.engines))

    async def round(self, count: int = 1, later_s: float = 1.0) -> None:
        """Rounds of the scaler, with the visits that it asks for."""
        for _ in range(count):
            self.clock_s += later_s
            await self.scaler.make_round()
            while self.touched:
                await self.visit()

    @property
    def ordinals(self) -> range:
        spec = self.api.objects["StatefulSet", "ns", "demo-engine"]["spec"]
        start = spec.get("ordinals", {}).get("start", 0)
        return range(start, start + spec["replicas"])

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects[KIND, "ns", "demo"].get("status", {})
        return found.get("autoscaling", {})

    async def end(self, admitted: cpb.AdmitCallResponse, tokens: int) -> None:
        """A call ends with so many tokens of context."""
        await self.engines[admitted.engine_id].report(
            admitted, seq=1, prompt_tokens=tokens, outcome=types_pb2.OUTCOME_COMPLETED
        )

    async def program(self, name: str, tokens: int) -> str:
        """A program with so much context; returns its engine."""
        await self.plane.open(name)
        admitted = await self.plane.admit(name)
        await self.end(admitted, tokens)
        return admitted.engine_id


@pytest.fixture
async def plane() -> AsyncIterator[ServedPlane]:
    async with ServedPlane() as made:
        yield made


async def test_engines_come_for_the_context_of_programs_within_two_rounds(plane: ServedPlane) -> None:
    scaled = Scaled(plane)
    await scaled.start()
    assert list(scaled.ordinals) == [0]
    # 3,000 tokens are 1.9 engines, of which 80 % may be in use.
    await scaled.program("p", 3000)
    await scaled.round(2)
    assert list(scaled.ordinals) == [0, 1, 2]
    assert (scaled.status["desired"], scaled.status["reason"]) == (3, "Context")
    assert scaled.status["lastScaleTime"] == NOW


async def test_the_end_with_less_context_is_recorded_then_drained_and_goes_after_its_last_call(
    plane: ServedPlane,
) -> None:
    scaled = Scaled(plane, replicas=3)
    await scaled.start()
    for index in range(3):
        await plane.open(f"p{index}")
    calls = [await plane.admit(f"p{index}") for index in range(3)]
    by_engine = {each.engine_id: each for each in calls}
    # The engine in the middle has least: it cannot go before those at the ends.
    await scaled.end(by_engine["demo-engine-1"], 1)
    await scaled.end(by_engine["demo-engine-2"], 900)
    running = by_engine["demo-engine-0"]
    # The call in flight on engine 0 has no known context; that of engine 2 is 900 tokens: about 0.6 engines, so one.
    await scaled.round(1)
    assert scaled.status["draining"] == ["demo-engine-0", "demo-engine-1"]
    assert scaled.planes.drains == []
    await scaled.round(1)
    assert sorted(scaled.planes.drains) == [("demo-engine-0", True), ("demo-engine-1", True)]
    await scaled.round(3)
    # The one in the middle is idle, but an end is not.
    assert list(scaled.ordinals) == [0, 1, 2]
    await scaled.end(running, 10)
    await scaled.round(3)
    assert list(scaled.ordinals) == [2]
    # Their names will be used again.
    await scaled.round(3)
    assert scaled.status["draining"] == []
    assert not plane.plane.engines.drained


async def test_new_calls_avoid_an_engine_that_is_about_to_leave(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=2)
    await scaled.start()
    where = await scaled.program("p", 100)
    await scaled.round(1)
    (leaving,) = scaled.status["draining"]
    assert leaving != where
    await plane.open("q")
    busy = [await plane.admit("q") for _ in range(2)]
    await scaled.round(2)
    for _ in range(5):
        assert (await plane.admit("q")).engine_id == where
    assert {each.engine_id for each in busy} == {where, leaving}


async def test_an_engine_stays_when_it_is_needed_again(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=2)
    await scaled.start()
    await plane.open("q")
    busy = {each.engine_id: each for each in [await plane.admit("q") for _ in range(2)]}
    await scaled.round(3)
    (leaving,) = scaled.status["draining"]
    assert plane.plane.engines.drained == {leaving}
    await scaled.end(next(each for name, each in busy.items() if name != leaving), 2000)
    await scaled.round(4)
    assert list(scaled.ordinals) == [0, 1]
    assert plane.plane.engines.drained == set()
    assert (scaled.status["desired"], scaled.status["draining"]) == (2, [])


async def test_the_drain_of_an_administrator_is_left_alone(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=2, min=2)
    await scaled.start()
    await plane.admin.DrainEngine(apb.DrainEngineRequest(engine_id="demo-engine-0"))
    await scaled.round(5)
    assert plane.plane.engines.drained == {"demo-engine-0"}
    assert scaled.planes.drains == []


async def test_nothing_changes_while_the_control_plane_is_silent(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=3, scaleInSeconds=60)
    await scaled.start()
    await scaled.round(2)
    scaled.planes.port = None
    await scaled.round(3, later_s=SILENT_S)
    assert (list(scaled.ordinals), scaled.status["reason"]) == ([0, 1, 2], "NoSignal")
    scaled.planes.port = plane.port
    # What was needed before the silence is no evidence that nothing was needed during it.
    await scaled.round(1)
    assert list(scaled.ordinals) == [0, 1, 2]


async def test_another_operator_goes_on_with_the_number_in_the_status(plane: ServedPlane) -> None:
    scaled = Scaled(plane, scaleInSeconds=60)
    await scaled.start()
    await scaled.program("p", 3000)
    await scaled.round(2)
    scaled.restart()
    await plane.admin.GetOverview(apb.GetOverviewRequest())
    await scaled.visit()
    assert list(scaled.ordinals) == [0, 1, 2]
    await scaled.round(1)
    assert scaled.status["desired"] == 3


async def test_another_operator_ends_the_drains_of_the_one_before(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=2)
    await scaled.start()
    await plane.open("q")
    busy = {each.engine_id: each for each in [await plane.admit("q") for _ in range(2)]}
    await scaled.round(3)
    (leaving,) = scaled.status["draining"]
    await scaled.end(next(each for name, each in busy.items() if name != leaving), 2000)
    scaled.restart()
    await scaled.visit()
    await scaled.round(4)
    assert (plane.plane.engines.drained, scaled.status["draining"]) == (set(), [])


async def test_engines_stay_when_autoscaling_is_switched_off(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=2)
    await scaled.start()
    await plane.open("q")
    for _ in range(2):
        await plane.admit("q")
    await scaled.round(3)
    assert plane.plane.engines.drained
    scaled.apply(autoscaling=None)
    await scaled.visit()
    await scaled.round(3)
    assert (plane.plane.engines.drained, scaled.status) == (set(), {})
    assert list(scaled.ordinals) == [0, 1]


async def test_with_an_external_scaler_engines_follow_replicas_and_drain(plane: ServedPlane) -> None:
    scaled = Scaled(plane, replicas=3, scaler="External")
    await scaled.start()
    await plane.open("q")
    calls = {each.engine_id: each for each in [await plane.admit("q") for _ in range(3)]}
    scaled.apply(replicas=2)
    await scaled.visit()
    await scaled.round(3)
    (leaving,) = scaled.status["draining"]
    assert list(scaled.ordinals) == [0, 1, 2]
    await scaled.end(calls[leaving], 10)
    await scaled.round(3)
    assert len(scaled.ordinals) == 2
    assert (scaled.status["desired"], scaled.status["reason"]) == (2, "External")
    scaled.apply(replicas=9)
    await scaled.visit()
    assert len(scaled.ordinals) == 4


async def test_to_zero_and_back_for_a_held_call(plane: ServedPlane) -> None:
    scaled = Scaled(plane, min=0, idleSeconds=5)
    await scaled.start()
    await scaled.round(8)
    assert list(scaled.ordinals) == []
    assert scaled.status["reason"] == "Idle"
    await eventually_async(lambda: not any(each.is_ready for each in plane.plane.engines))
    with pytest.raises(Exception, match="no engine can take a call"):
        await plane.admit("", hold_id=7, implicit=True)
    await scaled.round(1)
    assert list(scaled.ordinals) == [0]
    await scaled.round(3)
    assert (await plane.admit("", hold_id=7, implicit=True)).engine_id == "demo-engine-0"
