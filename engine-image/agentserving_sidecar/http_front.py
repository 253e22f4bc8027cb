"""Probes and metrics of the sidecar."""

from __future__ import annotations

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from agentserving_sidecar.sidecar import Sidecar


def http_app(sidecar: Sidecar, session: aiohttp.ClientSession) -> web.Application:
    """/healthz: this process. /readyz: the engine behind it, too. /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = await _not_ready(sidecar, session)
        return web.Response(status=503, text=f"{reason}\n") if reason else web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        registry = CollectorRegistry()

        def gauge(name: str, text: str, value: float) -> None:
            Gauge(f"agentserving_sidecar_{name}", text, registry=registry).set(value)

        gauge("unacked_reports", "terminal reports not acknowledged", len(sidecar.journal.unacked))
        gauge("corrupt_frames", "journal frames with a wrong checksum", sidecar.journal.corrupt_frames)
        gauge("attached", "1 = attached to the control plane", bool(sidecar.leader and sidecar.leader.attached))
        gauge("engine_connected", "1 = the plugin is connected", sidecar.engine_present)
        gauge("engine_stuck", "1 = calls run and no step ends", sidecar.stuck)
        if sidecar.load is not None:
            for name in sidecar.load.__struct_fields__:
                Gauge(f"agentserving_engine_{name}", name.replace("_", " "), registry=registry).set(
                    getattr(sidecar.load, name)
                )
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


async def _not_ready(sidecar: Sidecar, session: aiohttp.ClientSession) -> str:
    if not sidecar.engine_present:
        return "the engine's plugin has not connected"
    if sidecar.stuck:
        return "the engine has work and makes no step"
    if sidecar.draining:
        return "draining"
    try:
        async with session.get(f"http://{sidecar.engine_address}/health", timeout=aiohttp.ClientTimeout(2)) as answer:
            return "" if answer.status == 200 else f"the engine's /health says {answer.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"the engine's /health does not answer: {error}"
