"""The sidecar's end of the engine channel: a connection to each scheduler plugin, reconnected when it breaks.

An engine has one scheduler, or one for each data-parallel rank. Rank 0 says how many there are when it connects.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from agentserving.contract.channel import (
    MAX_RANKS,
    EngineHello,
    EngineReport,
    FrameSplitter,
    PolicyResult,
    ToEngine,
    frame,
    from_engine_decoder,
    socket_name,
)

from agentserving_sidecar.process_watch import peer_pid

log = structlog.get_logger()

RECONNECT_S = 0.2
# Bytes buffered for a plugin that does not read, a stopped one for example. Beyond, the connection is closed: a new one
# begins with the whole state.
MAX_BUFFERED_BYTES = 64 << 20


class EngineEvents(Protocol):
    """The owner of the links. All methods are called on the event loop, with the rank of the scheduler."""

    def engine_hello(self, hello: EngineHello, pid: int, rank: int) -> None:
        """The plugin has connected. `pid`: of its process, 0 when it cannot be seen from here."""
        ...

    def engine_report(self, report: EngineReport, rank: int) -> None:
        """Calls that have changed, and the load."""
        ...

    def engine_policy(self, result: PolicyResult, rank: int) -> None:
        """A policy was accepted or refused."""
        ...

    def engine_disconnected(self, rank: int) -> None:
        """The connection broke: the process has ended, or the plugin has dropped us."""
        ...

    def engine_absent(self, rank: int) -> None:
        """Nothing listens on the socket."""
        ...


class EngineLinks:
    """The links to all ranks as one: what is sent goes to each of them, and each ignores what is not about it."""

    def __init__(self, directory: Path, events: EngineEvents) -> None:
        self._directory, self._events = directory, events
        self._links: list[RankLink] = []
        self._more_ranks = asyncio.Event()
        self._expected = 1

    def send(self, message: ToEngine) -> bool:
        """Sends a message to all ranks. False while none of them is connected: the owner sends the whole state after
        each `engine_hello`."""
        sent = [link.send(message) for link in self._links]
        return any(sent)

    def reconnect(self) -> None:
        """Closes the connections; on the next ones the plugins send every record that is not acknowledged."""
        for link in self._links:
            link.reconnect()

    async def run(self) -> None:
        """Connects to rank 0, and to the others once it has said that there are others; until cancelled."""
        self._links.clear()
        async with asyncio.TaskGroup() as tasks:
            while True:
                while len(self._links) < self._expected:
                    link = RankLink(self._directory, self._events, len(self._links), self._heard)
                    self._links.append(link)
                    tasks.create_task(link.run())
                self._more_ranks.clear()
                await self._more_ranks.wait()

    def _heard(self, hello: EngineHello) -> None:
        # An engine that has started again with fewer ranks leaves links that never connect.
        self._expected = max(self._expected, min(hello.data_parallel_size, MAX_RANKS))
        self._more_ranks.set()


class RankLink:
    """Keeps one connection to ``<directory>/rank<n>.sock``. `on_hello` is called before the owner."""

    def __init__(
        self, directory: Path, events: EngineEvents, rank: int, on_hello: Callable[[EngineHello], None]
    ) -> None:
        self._path = directory / socket_name(rank)
        self._events, self._rank, self._on_hello = events, rank, on_hello
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
                self._events.engine_absent(self._rank)
                await asyncio.sleep(RECONNECT_S)
                continue
            try:
                await self._read(reader, writer)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                log.error("engine channel broke", error=str(error))
            finally:
                self._writer = None
                writer.close()
                self._events.engine_disconnected(self._rank)
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
                        self._on_hello(hello)
                        self._events.engine_hello(hello, pid, self._rank)
                    case EngineReport() as report:
                        self._events.engine_report(report, self._rank)
                    case PolicyResult() as result:
                        self._events.engine_policy(result, self._rank)
