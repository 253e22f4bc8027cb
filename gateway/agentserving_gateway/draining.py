"""Leaving without a broken call: what a gateway that was told to end still does.

It serves on as before, since Services go on sending for a moment, but each answer that begins now says that its
connection ends with it: clients come back through the Service, to another gateway. It ends once all is quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

# Until the last node knows that the pod is leaving.
SETTLE_S = 5.0
# A client that has just had its answer may speak again on a connection that promised to stay.
QUIET_S = 1.0
LOOK_S = 0.05


class Drainable(Protocol):
    """A connection of a client."""

    @property
    def is_busy(self) -> bool:
        """A request is arriving or being served."""

    def close(self) -> None:
        """At once."""


class Connections:
    """All that are open. `leaving` is read by each when its answer begins."""

    def __init__(self) -> None:
        self.leaving = False
        self._open: set[Drainable] = set()

    def opened(self, connection: Drainable) -> None:
        """A client has come."""
        self._open.add(connection)

    def closed(self, connection: Drainable) -> None:
        """It has gone."""
        self._open.discard(connection)

    @property
    def are_busy(self) -> bool:
        """Any of them."""
        return any(each.is_busy for each in self._open)

    async def drain(self, limit_s: float, stop_listening: Callable[[], None]) -> None:
        """Returns when nobody is being served, after `limit_s` seconds at the latest; 0 = at once."""
        self.leaving = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(min(SETTLE_S, limit_s))
        stop_listening()
        quiet_since = loop.time()
        while loop.time() < min(began + limit_s, quiet_since + QUIET_S):
            await asyncio.sleep(LOOK_S)
            if self.are_busy:
                quiet_since = loop.time()
        for each in list(self._open):
            each.close()
