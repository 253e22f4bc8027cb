"""Tells the control plane what an open program does. Best effort: an agent never fails, or waits long, for this.

gRPC is loaded when there is somebody to tell, not before. Whoever does not answer is left alone for a while, and that
is logged once; the program goes on by headers, and is closed by idleness if not by us.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentserving.client.asynchronous import AsyncClient
    from agentserving.client.operations import Operation
    from agentserving.client.sync import Client
    from agentserving.transport.connection import Settings

log = logging.getLogger("agentserving")

ADDRESS = "AGENTSERVING_CONTROL_PLANE"
# What an agent may lose to a control plane that does not answer, at most once in QUIET_S.
DEADLINE_S, ATTEMPTS = 2.0, 2
QUIET_S = 10.0

# Not told, because nobody listens. A refusal is its reason; "" is a yes.
UNTOLD = "UNTOLD"

_quiet_until: dict[str, float] = {}


class Teller:
    """For one program. Without an address it says nothing."""

    def __init__(self, address: str, given: Client | AsyncClient | None) -> None:
        self._address = address
        self._given = given
        self._sync: Client | None = None
        self._async: AsyncClient | None = None

    @classmethod
    def of(cls, control_plane: str | Client | AsyncClient | None) -> Teller:
        """From what the user gave, else from AGENTSERVING_CONTROL_PLANE."""
        if control_plane is None or isinstance(control_plane, str):
            return cls(os.environ.get(ADDRESS, "") if control_plane is None else control_plane, None)
        return cls(control_plane.address, control_plane)

    def tell(self, make: Callable[[], Operation[Any]]) -> str:
        """Blocks until told. Gives "", the reason of a refusal, or UNTOLD; never raises for the control plane."""
        if self._silent():
            return UNTOLD
        from agentserving.client.sync import Client
        from agentserving.transport.errors import AgentServingError

        try:
            if isinstance(self._given, Client):
                self._given.run(make())
            else:
                self._sync = self._sync or Client(self._address, settings=self._settings())
                self._sync.run(make())
        except AgentServingError as error:
            return self._failed(error)
        return self._told()

    async def atell(self, make: Callable[[], Operation[Any]]) -> str:
        """As `tell`."""
        if self._silent():
            return UNTOLD
        from agentserving.client.asynchronous import AsyncClient
        from agentserving.transport.errors import AgentServingError

        try:
            if isinstance(self._given, AsyncClient):
                await self._given.run(make())
            else:
                self._async = self._async or AsyncClient(self._address, settings=self._settings())
                await self._async.run(make())
        except AgentServingError as error:
            return self._failed(error)
        return self._told()

    def end(self) -> None:
        """Closes what was opened here, when the program was run with `with`."""
        client, self._sync = self._sync, None
        if client is not None:
            client.close()

    async def aend(self) -> None:
        """Closes what was opened here."""
        self.end()
        client, self._async = self._async, None
        if client is not None:
            await client.close()

    def _settings(self) -> Settings:
        from agentserving.transport.connection import Settings

        if self._given is not None:
            return self._given.settings
        return Settings(deadline_s=DEADLINE_S, attempts=ATTEMPTS)

    def _silent(self) -> bool:
        return not self._address or time.monotonic() < _quiet_until.get(self._address, 0.0)

    def _told(self) -> str:
        if _quiet_until.pop(self._address, None) is not None:
            log.info("control plane %s answers again", self._address)
        return ""

    def _failed(self, error: Exception) -> str:
        from agentserving.transport.errors import AgentServingError, DeadlineExceededError, UnavailableError

        if isinstance(error, UnavailableError | DeadlineExceededError):
            if self._address not in _quiet_until:
                log.warning("control plane away: programs go on by headers alone (%s)", error)
            _quiet_until[self._address] = time.monotonic() + QUIET_S
            return UNTOLD
        reason = error.reason if isinstance(error, AgentServingError) else ""
        log.debug("control plane refused: %s", error)
        return reason or type(error).__name__
