"""The sidecar's end of the channel: one connection per data-parallel rank, renewed for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from agentserving.contract.channel import (
    EngineHello,
    EngineReport,
    FrameSplitter,
    PolicyResult,
    ToEngine,
    frame,
    from_engine_decoder,
)

log = structlog.get_logger()

RECONNECT_S = 0.2


class EngineEvents(Protocol):
    """Who hears what the plugin says."""

    def engine_hello(self, rank: int, hello: EngineHello) -> None:
        """The plugin has introduced itself (again)."""
        ...

    def engine_report(self, rank: int, report: EngineReport) -> None:
        """Calls that changed, and the load."""
        ...

    def engine_policy(self, rank: int, result: PolicyResult) -> None:
        """A policy is in force, or refused."""
        ...

    def engine_away(self, rank: int) -> None:
        """The connection broke: the engine ended, or is about to start."""
        ...


class EngineLink:
    """Keeps one connection to ``<directory>/rank<N>.sock``."""

    def __init__(self, directory: Path, rank: int, events: EngineEvents) -> None:
        self._path = directory / f"rank{rank}.sock"
        self._rank, self._events = rank, events
        self._writer: asyncio.StreamWriter | None = None
        self._handlers: dict[type, Callable[..., None]] = {
            EngineHello: events.engine_hello,
            EngineReport: events.engine_report,
            PolicyResult: events.engine_policy,
        }

    def send(self, message: ToEngine) -> bool:
        """Sends a message; False when the engine is away (it is told everything anew when it is back)."""
        if self._writer is None:
            return False
        self._writer.write(frame(message))
        return True

    async def run(self) -> None:
        """Connects, reads, and begins again."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            self._writer = writer
            splitter = FrameSplitter()
            try:
                while data := await reader.read(1 << 18):
                    for body in splitter.feed(data):
                        message = from_engine_decoder.decode(body)
                        self._handlers[type(message)](self._rank, message)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error("channel broke", rank=self._rank, error=str(error))
            finally:
                self._writer = None
                writer.close()
                self._events.engine_away(self._rank)
            await asyncio.sleep(RECONNECT_S)
