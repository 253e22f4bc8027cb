"""The sidecar's end of the engine channel: one connection to the scheduler plugin, reconnected when it breaks."""

from __future__ import annotations

import asyncio
import socket
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

from agentserving_sidecar.process_watch import peer_pid

log = structlog.get_logger()

SOCKET_NAME = "rank0.sock"
RECONNECT_S = 0.2
# Bytes buffered for a plugin that does not read, a stopped one for example. Beyond, the connection is closed: a new one
# begins with the whole state.
MAX_BUFFERED_BYTES = 64 << 20


class EngineEvents(Protocol):
    """The owner of the link. All methods are called on the event loop."""

    def engine_hello(self, hello: EngineHello, pid: int) -> None:
        """The plugin has connected. `pid`: of its process, 0 when it cannot be seen from here."""
        ...

    def engine_report(self, report: EngineReport) -> None:
        """Calls that have changed, and the load."""
        ...

    def engine_policy(self, result: PolicyResult) -> None:
        """A policy was accepted or refused."""
        ...

    def engine_disconnected(self) -> None:
        """The connection broke: the process has ended, or the plugin has dropped us."""
        ...

    def engine_absent(self) -> None:
        """Nothing listens on the socket."""
        ...


class EngineLink:
    """Keeps one connection to ``<directory>/rank0.sock``."""

    def __init__(self, directory: Path, events: EngineEvents) -> None:
        self._path = directory / SOCKET_NAME
        self._events = events
        self._writer: asyncio.StreamWriter | None = None

    def send(self, message: ToEngine) -> bool:
        """Sends a message. False while there is no connection: the owner sends the whole state after `engine_hello`."""
        if self._writer is None:
            return False
        self._writer.write(frame(message))
        if self._writer.transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            log.error("the engine does not read its channel, connecting again", buffered_bytes=MAX_BUFFERED_BYTES)
            self.reconnect()
        return True

    def reconnect(self) -> None:
        """Closes the connection; on the next one the plugin sends every record that is not acknowledged."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.transport.abort()

    async def run(self) -> None:
        """Connects and reads until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                self._events.engine_absent()
                await asyncio.sleep(RECONNECT_S)
                continue
            try:
                await self._read(reader, writer)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error("engine channel broke", error=str(error))
            finally:
                self._writer = None
                writer.close()
                self._events.engine_disconnected()
            await asyncio.sleep(RECONNECT_S)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        connection: socket.socket = writer.get_extra_info("socket")
        pid = peer_pid(connection)
        splitter = FrameSplitter()
        while data := await reader.read(1 << 18):
            for body in splitter.feed(data):
                match from_engine_decoder.decode(body):
                    case EngineHello() as hello:
                        self._events.engine_hello(hello, pid)
                    case EngineReport() as report:
                        self._events.engine_report(report)
                    case PolicyResult() as result:
                        self._events.engine_policy(result)
