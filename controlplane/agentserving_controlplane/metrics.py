"""/metrics, /healthz and /readyz. Nothing is counted twice: the collector reads the state when it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as CollectorBase

from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.health import EngineState


class Collector(CollectorBase):
    """Reads a control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def collect(self) -> Iterator[Metric]:
        """Metric families; no label is unbounded."""
        plane = self._plane
        yield _leads(1)
        for name, value in plane.overview().items():
            yield GaugeMetricFamily(f"agentserving_{name}", name.replace("_", " "), value)
        totals = plane.table.totals
        yield CounterMetricFamily("agentserving_programs_completed", "programs ended", totals.programs_completed)
        yield CounterMetricFamily(
            "agentserving_reports_ignored", "reports that changed nothing", totals.reports_ignored
        )
        yield CounterMetricFamily("agentserving_calls_adopted", "calls found after a crash", totals.calls_adopted)
        yield CounterMetricFamily(
            "agentserving_endings_lost",
            "endings of calls and programs that a watcher read too slowly",
            plane.endings.lost,
        )
        yield CounterMetricFamily("agentserving_store_commits", "group commits landed", plane.commits.commits)
        yield GaugeMetricFamily("agentserving_store_pending_writes", "writes not landed", plane.commits.pending)
        yield GaugeMetricFamily("agentserving_store_healthy", "1 = the last commit landed", plane.commits.healthy)
        yield GaugeMetricFamily("agentserving_policy_version", "policy in force", plane.policy.version)
        calls = CounterMetricFamily("agentserving_calls_completed", "calls ended", labels=["outcome"])
        for outcome, count in totals.outcomes.items():
            calls.add_metric([outcome.name.lower()], count)
        yield calls
        in_flight = GaugeMetricFamily("agentserving_engine_calls_in_flight", "calls on an engine", labels=["engine"])
        ready = GaugeMetricFamily("agentserving_engine_ready", "1 = takes calls", labels=["engine"])
        for engine in plane.engines:
            in_flight.add_metric([engine.engine_id], engine.in_flight)
            ready.add_metric([engine.engine_id], engine.state is EngineState.READY)
        yield in_flight
        yield ready


class FollowerCollector(CollectorBase):
    """Of a process that does not lead."""

    def collect(self) -> Iterator[Metric]:
        """One metric."""
        yield _leads(0)


def _leads(value: int) -> Metric:
    return GaugeMetricFamily("agentserving_leader", "1 = this control plane leads", value)


@dataclass(slots=True)
class Readiness:
    """`plane` is there while it leads; `leader` is another that does; `waiting` says for what it waits else."""

    plane: ControlPlane | None = None
    leader: str = ""
    waiting: str = "starting"


def http_app(readiness: Readiness) -> web.Application:
    """Probes and metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if readiness.plane is not None:
            return web.Response(text="ok: leading\n")
        if readiness.leader:
            return web.Response(text=f"ok: {readiness.leader} leads\n")
        return web.Response(status=503, text=f"not recovered: {readiness.waiting}\n")

    async def metrics(_: web.Request) -> web.Response:
        registry = CollectorRegistry()
        plane = readiness.plane
        registry.register(Collector(plane) if plane is not None else FollowerCollector())
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
