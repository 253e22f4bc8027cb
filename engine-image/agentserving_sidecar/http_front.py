"""Probes and metrics of the sidecar."""

from __future__ import annotations

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from agentserving_sidecar.draining import drained, may_drain
from agentserving_sidecar.metrics import Collector
from agentserving_sidecar.sidecar import Sidecar


def http_app(sidecar: Sidecar, session: aiohttp.ClientSession, drain_s: float) -> web.Application:
    """/healthz: this process. /readyz: the engine behind it, too. /metrics. /drain answers once the engine is idle.

    Kubernetes ends a pod's containers before its native sidecars: it is the engine's preStop hook that asks to drain.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = await _not_ready(sidecar, session)
        return web.Response(status=503, text=f"{reason}\n") if reason else web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(Collector(sidecar))
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    async def drain(request: web.Request) -> web.Response:
        if not may_drain(request.remote):
            return web.Response(status=403, text="only the engine's own pod may ask for this\n")
        sidecar.drain()
        return web.Response(text="drained\n" if await drained(sidecar, drain_s) else "the bound came first\n")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    app.add_routes([web.get("/drain", drain)])
    return app


async def _not_ready(sidecar: Sidecar, session: aiohttp.ClientSession) -> str:
    if not sidecar.engine_present:
        return "the engine's plugin has not connected"
    if sidecar.stuck:
        return "the engine makes no step, or is not heard any more"
    if sidecar.draining:
        return "draining"
    try:
        async with session.get(f"http://{sidecar.engine_address}/health", timeout=aiohttp.ClientTimeout(2)) as answer:
            return "" if answer.status == 200 else f"the engine's /health says {answer.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"the engine's /health does not answer: {error}"
