"""Asks the engine's HTTP front again and again: is it healthy, and which models does it serve?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from agentserving_sidecar.engine_http import EngineHttp, ModelsUnknownError
from agentserving_sidecar.health import FrontState

log = structlog.get_logger()

# Between two health checks. vLLM logs each: --disable-access-log-for-endpoints /health keeps its log short.
HEALTH_INTERVAL_S = 0.75
# Adapters can be loaded at any time.
MODELS_INTERVAL_S = 15.0
MODELS_RETRY_S, MODELS_MAX_RETRY_S = 0.5, 15.0
# An engine that wants a key logs every request without one.
UNAUTHORIZED_RETRY_S = 300.0


async def probe_front(engine: EngineHttp, on_state: Callable[[FrontState, str], None]) -> None:
    """Checks the front's health until cancelled; `on_state` is called with each result."""
    while True:
        on_state(*await engine.front())
        await asyncio.sleep(HEALTH_INTERVAL_S)


class ModelList:
    """The engine's models, asked for periodically. `on_change` is called with the new list when it differs."""

    def __init__(self, engine: EngineHttp, on_change: Callable[[tuple[str, ...]], None]) -> None:
        self._engine, self._on_change = engine, on_change
        self._ask_now = asyncio.Event()
        self._failures = 0
        self._logged = ""

    def refresh(self) -> None:
        """Asks now: the engine has booted, or has become healthy."""
        self._failures = 0
        self._ask_now.set()

    async def run(self) -> None:
        """Asks until cancelled."""
        known: tuple[str, ...] = ()
        while True:
            # Before asking: an engine that boots while it is being asked is asked again.
            self._ask_now.clear()
            try:
                models = await self._engine.models()
            except ModelsUnknownError as error:
                delay_s = self._failed(error)
            else:
                delay_s, self._failures, self._logged = MODELS_INTERVAL_S, 0, ""
                if models != known:
                    known = models
                    self._on_change(models)
            try:
                async with asyncio.timeout(delay_s):
                    await self._ask_now.wait()
            except TimeoutError:
                continue

    def _failed(self, error: ModelsUnknownError) -> float:
        """Seconds until the next attempt."""
        self._failures += 1
        if error.is_unauthorized:
            if self._logged != str(error):
                self._logged = str(error)
                log.warning(
                    "the engine wants an API key: its models are unknown, so no call can be routed by model; set "
                    "--engine-api-key-file",
                    error=str(error),
                )
            return UNAUTHORIZED_RETRY_S
        return min(MODELS_MAX_RETRY_S, MODELS_RETRY_S * 2.0 ** min(self._failures - 1, 10))
