"""Idle connections to engines.

An engine's HTTP server closes connections that are idle for long (uvicorn, under vLLM: 5 s), so the pool closes them
earlier. The server may still close one in the moment in which a request is sent on it; `attempt` then opens a new one.
"""

from __future__ import annotations

import asyncio

from agentserving_gateway.upstream import UpstreamConnection

CONNECT_DEADLINE_S = 3.0
IDLE_S = 3.0
MAX_IDLE = 256


class UpstreamPool:
    """One per gateway process."""

    def __init__(self) -> None:
        self._idle: dict[str, list[tuple[UpstreamConnection, asyncio.TimerHandle]]] = {}
        self._loop = asyncio.get_running_loop()

    def take(self, address: str) -> UpstreamConnection | None:
        """The most recently used connection, which the engine closes last; None when none is idle."""
        waiting = self._idle.get(address)
        while waiting:
            connection, timer = waiting.pop()
            timer.cancel()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, address: str) -> UpstreamConnection:
        """A new connection. OSError or TimeoutError when the engine cannot be reached."""
        host, _, port = address.rpartition(":")
        connection = UpstreamConnection(address, self._give)
        # Not wait_for, which swallows a cancellation that comes in the same moment as its result (Python 3.11).
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            await self._loop.create_connection(lambda: connection, host, int(port))
        return connection

    def _give(self, connection: UpstreamConnection) -> None:
        waiting = self._idle.setdefault(connection.address, [])
        if len(waiting) >= MAX_IDLE:
            connection.abandon()
            return
        waiting.append((connection, self._loop.call_later(IDLE_S, connection.abandon)))

    def close(self) -> None:
        """Closes all idle connections."""
        for waiting in self._idle.values():
            for connection, timer in waiting:
                timer.cancel()
                connection.abandon()
        self._idle.clear()
