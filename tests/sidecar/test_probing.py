"""What the sidecar learns from the engine's HTTP front: its health, and the models that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from agentserving_sidecar.engine_http import EngineHttp, ModelsUnknownError
from agentserving_sidecar.health import FrontState
from agentserving_sidecar.probing import ModelList, probe_front
from aiohttp import web
from sidecar.ports import until
from structlog.testing import capture_logs


@dataclass
class Front:
    """An engine's HTTP front that does what a test says."""

    models: object = field(default_factory=lambda: {"data": [{"id": "base"}]})
    status: int = 200
    key: str = ""
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    address: str = ""

    async def health(self, _: web.Request) -> web.Response:
        await self.answers.wait()
        return web.Response(status=self.status)

    async def list_models(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.answers.wait()
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.Response(status=401)
        return web.json_response(self.models, status=self.status)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    front = Front()
    front.answers.set()
    app = web.Application()
    app.add_routes([web.get("/health", front.health), web.get("/v1/models", front.list_models)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    front.address = f"127.0.0.1:{runner.addresses[0][1]}"
    yield front
    front.answers.set()
    await runner.cleanup()


async def test_the_front_is_healthy_unhealthy_silent_or_refuses_connections(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentserving_sidecar.engine_http.HEALTH_TIMEOUT_S", 0.3)
    async with EngineHttp(front.address) as engine, EngineHttp("127.0.0.1:9") as nothing:
        assert await engine.front() == (FrontState.HEALTHY, "")
        front.status = 503
        assert await engine.front() == (FrontState.UNHEALTHY, "/health: HTTP 503")
        front.answers.clear()
        assert (await engine.front())[0] is FrontState.SILENT
        assert (await nothing.front())[0] is FrontState.REFUSED


async def test_the_front_is_asked_again_and_again(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentserving_sidecar.probing.HEALTH_INTERVAL_S", 0.01)
    found: list[FrontState] = []
    async with EngineHttp(front.address) as engine:
        probing = asyncio.create_task(probe_front(engine, lambda state, _: found.append(state)))
        await until(lambda: len(found) >= 2)
        front.status = 500
        await until(lambda: found[-1] is FrontState.UNHEALTHY)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


@pytest.mark.parametrize("models", [{}, [], "no", {"data": [{}]}, {"data": None}, {"data": [3]}])
async def test_a_response_that_is_no_list_of_models_is_an_error_that_says_so(front: Front, models: object) -> None:
    front.models = models
    async with EngineHttp(front.address) as engine:
        with pytest.raises(ModelsUnknownError, match="no list of models"):
            await engine.models()


async def test_a_models_request_that_hangs_ends(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentserving_sidecar.engine_http.MODELS_TIMEOUT_S", 0.1)
    front.answers.clear()
    async with EngineHttp(front.address) as engine:
        with pytest.raises(ModelsUnknownError, match="in time"):
            await engine.models()


async def test_adapters_that_are_loaded_later_become_known(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentserving_sidecar.probing.MODELS_INTERVAL_S", 0.01)
    found: list[tuple[str, ...]] = []
    async with EngineHttp(front.address) as engine:
        asking = asyncio.create_task(ModelList(engine, found.append).run())
        await until(lambda: found == [("base",)])
        front.models = {"data": [{"id": "base"}, {"id": "sql-adapter"}]}
        await until(lambda: len(found) > 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert found == [("base",), ("base", "sql-adapter")]


async def test_an_engine_that_has_booted_is_asked_without_waiting(front: Front) -> None:
    found: list[tuple[str, ...]] = []
    async with EngineHttp(front.address) as engine:
        models = ModelList(engine, found.append)
        asking = asyncio.create_task(models.run())
        await until(lambda: len(found) == 1)
        front.models = {"data": [{"id": "other"}]}
        models.refresh()
        await until(lambda: len(found) == 2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert found[-1] == ("other",)


async def test_an_engine_that_wants_a_key_is_asked_once_and_the_log_says_which_flag_to_set(front: Front) -> None:
    front.key = "secret"
    async with EngineHttp(front.address) as engine:
        with capture_logs() as lines:
            asking = asyncio.create_task(ModelList(engine, lambda _: None).run())
            await until(lambda: bool(lines))
            # Longer than the first retry of other failures.
            await asyncio.sleep(0.8)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    assert front.asked == 1
    assert len(lines) == 1
    assert "--engine-api-key-file" in lines[0]["event"]


async def test_a_key_from_a_file_is_sent_as_it_is_now(front: Front, tmp_path: Path) -> None:
    front.key, key_file = "second", tmp_path / "key"
    key_file.write_text("first\n")
    async with EngineHttp(front.address, key_file) as engine:
        with pytest.raises(ModelsUnknownError) as refused:
            await engine.models()
        assert refused.value.is_unauthorized
        key_file.write_text("second\n")
        assert await engine.models() == ("base",)
