"""A simulated engine on a port, and the official SDKs against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anthropic
import openai
from agentserving_engine.calls import CallBook, Outbox, TicketCheck
from agentserving_engine.http.entrance import Entrance
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.engine import Limits, SimulatedEngine
from agentserving_simulator.http_front import Conduct, Front
from aiohttp import web

MODEL = "tiny"
CHECK = TicketCheck(engine_id="e0", keys=None)
LIMITS = Limits(max_model_len=131_072)


class Served:
    """It makes no steps until `run` is called, so its calls wait."""

    def __init__(self, conduct: Conduct, limits: Limits = LIMITS) -> None:
        self.engine = SimulatedEngine(CallBook(CHECK, Outbox(limit=0)), limits, CostModel(speed=50.0))
        front = Front(self.engine, MODEL, Entrance(lambda: CHECK, separate_caches=True), conduct, "e0")
        self.runner = web.AppRunner(front.app(), handler_cancellation=True, shutdown_timeout=0.1)
        self.steps: asyncio.Task[None] | None = None
        self.url = ""
        self._clients: list[openai.AsyncOpenAI | anthropic.AsyncAnthropic] = []

    def run(self) -> None:
        """Makes steps from now on."""
        self.steps = asyncio.create_task(self.engine.run())

    async def close(self) -> None:
        """Ends everything."""
        for client in self._clients:
            await client.close()
        await self.runner.cleanup()
        if self.steps is not None:
            self.steps.cancel()
            await asyncio.gather(self.steps, return_exceptions=True)

    def openai(self) -> openai.AsyncOpenAI:
        """OpenAI's SDK; closed with the engine."""
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        self._clients.append(client)
        return client

    def anthropic(self) -> anthropic.AsyncAnthropic:
        """Anthropic's SDK; closed with the engine."""
        client = anthropic.AsyncAnthropic(base_url=self.url, api_key="none", max_retries=0, timeout=60)
        self._clients.append(client)
        return client


@asynccontextmanager
async def simulated(
    conduct: Conduct | None = None, limits: Limits = LIMITS, *, runs: bool = True
) -> AsyncIterator[Served]:
    """Serves; `runs`: makes steps from the beginning."""
    served = Served(conduct or Conduct(), limits)
    await served.runner.setup()
    await web.TCPSite(served.runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{served.runner.addresses[0][1]}"
    if runs:
        served.run()
    try:
        yield served
    finally:
        await served.close()
