"""Stopping without a broken call: what a gateway still does after SIGTERM.

It serves on, since Services send clients for a moment longer, but each answer that begins now closes its connection:
clients come back through the Service, to another gateway. The process ends once all connections are quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

# Until the last node knows that the pod is leaving.
SETTLE_S = 5.0
# A client that has just had its answer may speak again on a connection that promised to stay.
QUIET_S = 1.0
POLL_S = 0.05


class Drainable(Protocol):
    """A connection of a client."""

    @property
    def is_busy(self) -> bool:
        """A request is arriving or being served."""

    def close(self) -> None:
        """Closes it, whatever is under way."""


class Connections:
    """All open connections. Each reads `leaving` when its answer begins."""

    def __init__(self) -> None:
        self.leaving = False
        self._open: set[Drainable] = set()

    def opened(self, connection: Drainable) -> None:
        """A client has connected."""
        self._open.add(connection)

    def closed(self, connection: Drainable) -> None:
        """A client has gone."""
        self._open.discard(connection)

    @property
    def are_busy(self) -> bool:
        """True while a request arrives or is served on any of them."""
        return any(connection.is_busy for connection in self._open)

    async def drain(self, limit_s: float, stop_listening: Callable[[], None]) -> None:
        """Returns when no request is being served, after `limit_s` seconds at the latest; 0 = immediately."""
        self.leaving = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(min(SETTLE_S, limit_s))
        stop_listening()
        quiet_since = loop.time()
        while loop.time() < min(began + limit_s, quiet_since + QUIET_S):
            await asyncio.sleep(POLL_S)
            if self.are_busy:
                quiet_since = loop.time()
        for connection in list(self._open):
            connection.close()
