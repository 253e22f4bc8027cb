"""On a real API server: a cluster's engines scale by the operator's numbers, and by the scale subresource."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from agentserving_operator.__main__ import now
from agentserving_operator.api_server import ApiServer, path_of
from agentserving_operator.control_planes import ControlPlanes, Target
from agentserving_operator.reconcile import Reconciler
from agentserving_operator.scaler import Scaler
from agentserving_operator.scaling.decision import Need, ScaleReason
from agentserving_operator.scaling.plan import Answer, Work
from agentserving_operator.spec.scheduling import Scheduling
from kube.client import CLUSTERS, Kube
from kube.server import OPERATOR
from kube.server import ApiServer as Server
from kube.visiting import IMAGES, MERGE, SIMULATED, live, make

SCALED: dict[str, Any] = {
    **SIMULATED, "engine": {"type": "Simulator", "replicas": 2, "autoscaling": {"max": 5, "scaleInSeconds": 0}}
}  # fmt: skip


class Planes(ControlPlanes):
    """What a control plane would say: there is none on an API server alone."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.work, self.drains = 0.0, dict[str, Work](), list[tuple[str, bool]]()

    async def need(self, target: Target) -> Answer | None:
        return Answer(need=Need(engines={ScaleReason.CONTEXT: self.context}, calls=1), work=self.work)

    async def drain(self, target: Target, engine_id: str, drained: bool) -> bool:
        self.drains.append((engine_id, drained))
        return True


class Operator:
    """One that visits when its scaler asks for it."""

    def __init__(self, server: Server, admin: Kube, namespace: str) -> None:
        self.kubeconfig, self.admin, self.namespace = str(server.kubeconfig(OPERATOR)), admin, namespace
        self.planes, self.clock_s = Planes(), 0.0
        self.scaler = Scaler(self.planes, lambda namespace, name: None, lambda: self.clock_s)

    def round(self, count: int = 1) -> None:
        """Visits with a round of the scaler after each, and one visit more."""

        async def go() -> None:
            async with await ApiServer.connect(self.kubeconfig) as api:
                reconciler = Reconciler(
                    api=api, apply_policy=self.planes.apply_policy, apply_tenants=self.planes.apply_tenants,
                    images=IMAGES, now=now, random_bytes=secrets.token_bytes, scaling=self.scaler,
                )  # fmt: skip
                for _ in range(count):
                    await reconciler.visit(self.namespace, "demo")
                    self._aim()
                    self.clock_s += 1
                    await self.scaler.make_round()
                await reconciler.visit(self.namespace, "demo")

        asyncio.run(go())

    def _aim(self) -> None:
        # No pod makes the control plane's Deployment ready here.
        found = live(self.admin, self.namespace)
        pods = [f"demo-engine-{each}" for each in self.ordinals()]
        target = Target(address="none:1", scheduling=Scheduling(), generation=found["metadata"]["generation"])
        self.scaler.aim((self.namespace, "demo"), target, pods)

    def ordinals(self) -> list[int]:
        spec = self.admin.get(f"{path_of('StatefulSet', self.namespace)}/demo-engine")["spec"]
        start = spec.get("ordinals", {}).get("start", 0)
        return list(range(start, start + spec["replicas"]))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = live(self.admin, self.namespace)["status"]["autoscaling"]
        return found


def test_engines_come_and_the_end_with_less_context_goes(server: Server, admin: Kube, namespace: str) -> None:
    make(admin, namespace, SCALED)
    operator = Operator(server, admin, namespace)
    operator.planes.context = 2.5
    operator.round(3)
    assert operator.ordinals() == [0, 1, 2, 3]
    status = operator.status()
    assert (status["desired"], status["reason"]) == (4, "Context")
    # The lower end has least.
    operator.planes.work = {f"demo-engine-{each}": Work(kept_tokens=each) for each in range(4)}
    operator.planes.context = 1.7
    operator.round(2)
    assert operator.status()["draining"] == ["demo-engine-0"]
    operator.round(3)
    assert operator.planes.drains[0] == ("demo-engine-0", True)
    assert operator.ordinals() == [1, 2, 3]
    operator.round(3)
    assert operator.planes.drains[-1] == ("demo-engine-0", False)
    assert operator.status().get("draining", []) == []
    operator.planes.context = 2.5
    operator.round(3)
    assert operator.ordinals() == [0, 1, 2, 3]


def test_without_autoscaling_the_ordinals_stay_where_they_are(server: Server, admin: Kube, namespace: str) -> None:
    make(admin, namespace, SCALED)
    operator = Operator(server, admin, namespace)
    operator.planes.context = 1.6
    operator.planes.work = {"demo-engine-1": Work(kept_tokens=9)}
    operator.round(2)
    operator.planes.context = 0.1
    operator.round(6)
    assert operator.ordinals() == [1]
    engine = {"autoscaling": None, "replicas": 2}
    admin.must("PATCH", f"{CLUSTERS.format(namespace)}/demo", {"spec": {"engine": engine}}, MERGE)
    operator.round(2)
    assert operator.ordinals() == [1, 2]
    assert "autoscaling" not in live(admin, namespace)["status"]


def test_the_scale_subresource_sets_what_an_external_scaler_wants(server: Server, admin: Kube, namespace: str) -> None:
    engine = {"type": "Simulator", "replicas": 2, "autoscaling": {"max": 5, "scaler": "External"}}
    make(admin, namespace, {**SIMULATED, "engine": engine})
    operator = Operator(server, admin, namespace)
    operator.round()
    scale = f"{CLUSTERS.format(namespace)}/demo/scale"
    assert admin.get(scale)["spec"]["replicas"] == 2
    assert "app.kubernetes.io/component=engine" in admin.get(scale)["status"]["selector"]
    admin.must("PATCH", scale, {"spec": {"replicas": 9}}, MERGE)
    operator.round()
    assert len(operator.ordinals()) == 5
    assert operator.status()["reason"] == "External"
