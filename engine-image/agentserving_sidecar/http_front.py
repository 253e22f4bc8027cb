"""Probes and metrics of the sidecar."""

from __future__ import annotations

from agentserving_process.probes import Answer, application
from aiohttp import web
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from agentserving_sidecar.engine_http import EngineHttp
from agentserving_sidecar.metrics import Collector
from agentserving_sidecar.sidecar import Sidecar


def http_app(sidecar: Sidecar, engine: EngineHttp | None = None) -> web.Application:
    """/healthz: this process. /readyz: the engine behind it, as reported to the leader. /metrics.

    GET /engine/metrics passes the engine's own metrics on: it serves them on the port of its calls, which a
    NetworkPolicy keeps closed to Prometheus.
    """
    engine_metrics = CollectorRegistry()
    engine_metrics.register(Collector(sidecar))

    async def metrics_of_engine(_: web.Request) -> web.Response:
        if engine is None:
            return web.Response(status=404)
        status, body = await engine.metrics()
        return web.Response(status=status, body=body, content_type="text/plain")

    return application(
        ready=lambda: readiness(sidecar),
        metrics=lambda: generate_latest(engine_metrics) + generate_latest(REGISTRY),
        routes=[web.get("/engine/metrics", metrics_of_engine)],
    )


def readiness(sidecar: Sidecar) -> Answer:
    """Whether the engine can be given calls."""
    health = sidecar.engine.health
    if not health.is_serving:
        return Answer(False, f"{health.state.value}: {health.reason}")
    if sidecar.draining:
        return Answer(False, "draining")
    return Answer(True, "ok")
