"""The sidecar passes its engine's metrics on, because the engine's port is closed to Prometheus."""

from __future__ import annotations

from pathlib import Path

from agentserving.contract.engine_http import POD_HEADER
from agentserving.contract.pod_secret import made_pod_secret
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


async def test_the_sidecar_opens_them_with_the_secret_of_its_pod(tmp_path: Path) -> None:
    """Read for each request: the engine makes it when it starts, after the sidecar."""
    seen: list[str] = []

    async def metrics(request: web.Request) -> web.Response:
        seen.append(request.headers.get(POD_HEADER, ""))
        return web.Response(text=METRICS)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with TestServer(app) as server, EngineHttp(f"{server.host}:{server.port}", pod_dir=tmp_path) as engine:
        await engine.metrics()
        secret = made_pod_secret(tmp_path)
        await engine.metrics()
    assert seen == ["", secret]
