"""Notifies the control plane of a program's life. Best effort: an agent never fails, or waits long, because of it.

gRPC is imported when there is a control plane to notify, not before. One that does not answer is not tried again for a
while, which is logged once. The program continues by headers alone, and expires if it cannot be closed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentserving.client.aio import AsyncClient
    from agentserving.client.blocking import Client
    from agentserving.client.operations import Operation
    from agentserving.transport.connection import Settings

log = logging.getLogger("agentserving")

ADDRESS = "AGENTSERVING_CONTROL_PLANE"
# The time that an agent may lose to a control plane that does not answer, at most once in QUIET_S.
DEADLINE_S, ATTEMPTS = 2.0, 2
QUIET_S = 10.0

# Result of a notification that did not arrive. An accepted one gives "", a refused one the reason.
UNDELIVERED = "UNDELIVERED"

_quiet_until: dict[str, float] = {}
# Addresses whose refusal of our key was logged.
_refused_keys: set[str] = set()


class Notifier:
    """Sends the notifications of one program; none without an address."""

    def __init__(self, address: str, given: Client | AsyncClient | None, api_key: str | None = None) -> None:
        self._address, self._api_key = address, api_key
        self._given = given
        self._sync: Client | None = None
        self._async: AsyncClient | None = None

    @classmethod
    def of(cls, control_plane: str | Client | AsyncClient | None, api_key: str | None = None) -> Notifier:
        """For the control plane that the user names, by default AGENTSERVING_CONTROL_PLANE; and for the user's key."""
        if control_plane is None or isinstance(control_plane, str):
            return cls(os.environ.get(ADDRESS, "") if control_plane is None else control_plane, None, api_key)
        return cls(control_plane.address, control_plane)

    def notify(self, operation: Callable[[], Operation[Any]]) -> str:
        """Blocks until it has arrived. Gives "", the reason of a refusal, or UNDELIVERED."""
        if self._is_quiet():
            return UNDELIVERED
        from agentserving.client.blocking import Client
        from agentserving.transport.errors import AgentServingError

        try:
            if isinstance(self._given, Client):
                self._given.run(operation())
            else:
                self._sync = self._sync or Client(self._address, settings=self._settings())
                self._sync.run(operation())
        except AgentServingError as error:
            return self._failed(error)
        return self._delivered()

    async def anotify(self, operation: Callable[[], Operation[Any]]) -> str:
        """As `notify`, awaited."""
        if self._is_quiet():
            return UNDELIVERED
        from agentserving.client.aio import AsyncClient
        from agentserving.transport.errors import AgentServingError

        try:
            if isinstance(self._given, AsyncClient):
                await self._given.run(operation())
            else:
                self._async = self._async or AsyncClient(self._address, settings=self._settings())
                await self._async.run(operation())
        except AgentServingError as error:
            return self._failed(error)
        return self._delivered()

    def close(self) -> None:
        """Closes the connection of a program that was run with `with`."""
        client, self._sync = self._sync, None
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """Closes the connections."""
        self.close()
        client, self._async = self._async, None
        if client is not None:
            await client.close()

    def _settings(self) -> Settings:
        from agentserving.transport.connection import Settings

        if self._given is not None:
            return self._given.settings
        settings = Settings(deadline_s=DEADLINE_S, attempts=ATTEMPTS)
        return settings if self._api_key is None else replace(settings, api_key=self._api_key)

    def _is_quiet(self) -> bool:
        return not self._address or time.monotonic() < _quiet_until.get(self._address, 0.0)

    def _delivered(self) -> str:
        if _quiet_until.pop(self._address, None) is not None:
            log.info("control plane %s answers again", self._address)
        return ""

    def _failed(self, error: Exception) -> str:
        from agentserving.transport.errors import (
            AgentServingError,
            DeadlineExceededError,
            PermissionDeniedError,
            UnavailableError,
        )

        if isinstance(error, UnavailableError | DeadlineExceededError):
            if self._address not in _quiet_until:
                log.warning("the control plane is unavailable: programs continue by headers alone (%s)", error)
            _quiet_until[self._address] = time.monotonic() + QUIET_S
            return UNDELIVERED
        reason = error.reason if isinstance(error, AgentServingError) else ""
        if isinstance(error, PermissionDeniedError) and self._address not in _refused_keys:
            _refused_keys.add(self._address)
            log.warning("the control plane refuses this key: programs continue by headers alone (%s)", error)
        log.debug("control plane refused: %s", error)
        return reason or type(error).__name__
