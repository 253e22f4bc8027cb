"""An engine whose calls cost exactly what the test says: the plugin's call book and channel, without a model."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from agentserving.contract.channel import AckCalls, EngineHello, EngineReport, Load, ToEngine
from agentserving.contract.policy import Accounting
from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import IssuerKeys
from agentserving_engine.calls import CallBook, TicketCheck
from agentserving_engine.calls.book import copy_record
from agentserving_engine.channel_server import ChannelServer
from agentserving_engine.clock import now_us
from agentserving_engine.policy import CallStats
from aiohttp import web


class ScriptedEngine:
    """Answers /v1/models and /health. `run` is one call; `received` are the directives so far."""

    def __init__(self, engine_id: str, key: bytes, directory: Path) -> None:
        self.engine_id, self.directory = engine_id, directory
        self.book = CallBook(TicketCheck(engine_id=engine_id, keys=lambda: IssuerKeys([signing_key(key).public_key()])))
        self.received: list[ToEngine] = []
        self._number = 0
        hello = EngineHello(
            boot_id=uuid.uuid4().hex, pid=0, engine_kind="SIMULATOR", engine_version="0", plugin_version="0",
            max_num_seqs=64, max_model_len=8192, block_size=16, num_blocks=27_000, data_parallel_size=1,
            async_scheduling=False, policy_version=0,
        )  # fmt: skip
        self.channel = ChannelServer(directory / "rank0.sock", hello, self.book.outbox)
        self.address = ""

    async def start(self) -> ScriptedEngine:
        """Starts to listen."""

        async def models(_: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "tiny"}]})

        app = web.Application()
        app.add_routes([web.get("/v1/models", models), web.get("/health", models)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        self._reader = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        while True:
            while self.channel.inbox:
                message = self.channel.inbox.popleft()
                if isinstance(message, AckCalls):
                    self.book.outbox.acknowledge(message.calls)
                else:
                    self.received.append(message)
            await asyncio.sleep(0.005)

    async def run(self, ticket: str, pieces: Iterable[tuple[float, int]], wait_us: int, tokens: int) -> None:
        """One call, charged piece by piece: (seconds that pass, service in microseconds)."""
        self._number += 1
        request_id = f"request{self._number}x"
        facts = self.book.arrive(request_id, ticket, now_us(), time.time(), Accounting.SUM)
        assert facts.managed, f"ticket refused: {ticket}"
        call = self.book.call_of(request_id)
        assert call is not None
        for pause_s, service_us in pieces:
            await asyncio.sleep(pause_s)
            self.book.charge(request_id, service_us)
            self.channel.post(EngineReport(Load(running=1), [copy_record(call.record)], 1))
        call.record.output_tokens = tokens
        record = self.book.end(request_id, CallStats(wait_us=wait_us), "completed", now_us(), Accounting.SUM)
        assert record is not None
        self.channel.post(EngineReport(Load(), [record], 1))

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._runner.cleanup()
        await asyncio.to_thread(self.channel.close)
