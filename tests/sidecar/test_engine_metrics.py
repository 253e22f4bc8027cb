"""The sidecar passes its engine's metrics on, because the engine's port is closed to Prometheus."""

from __future__ import annotations

from pathlib import Path

from agentserving_sidecar.engine_http import EngineHttp
from agentserving_sidecar.http_front import http_app
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sidecar.ports import running_sidecar

METRICS = "vllm:num_requests_running 3.0\n"


async def scrape(engine: EngineHttp, journal: Path) -> tuple[int, str]:
    async with engine, running_sidecar(journal) as rig:
        app = http_app(rig.sidecar, engine)
        async with TestClient(TestServer(app)) as prometheus:
            response = await prometheus.get("/engine/metrics")
            return response.status, await response.text()


async def test_metrics_of_the_engine_are_passed_on(tmp_path: Path) -> None:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server:
        engine = EngineHttp(f"{server.host}:{server.port}")
        assert await scrape(engine, tmp_path / "journal") == (200, METRICS)


async def test_an_engine_that_does_not_answer_is_a_bad_gateway(tmp_path: Path) -> None:
    status, text = await scrape(EngineHttp("127.0.0.1:9"), tmp_path / "journal")
    assert status == 502
    assert "the engine's /metrics" in text
