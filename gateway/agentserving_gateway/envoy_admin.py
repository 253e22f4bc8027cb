"""Envoy's admin interface on its Unix socket: what is in force, and the drain. The only module that speaks to it."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Self

import aiohttp

from agentserving_gateway.envoy.filters import PICKER

# A stop must not wait for an Envoy that hangs.
ASK_S = 2.0
POLL_S = 0.05
_NO_LISTENER = (errno.ENOENT, errno.ECONNREFUSED)
_CONNECTIONS = "http.front.downstream_cx_active"
_ACTIVE = "http.front.downstream_rq_active"


class EnvoyAdmin:
    """Use as a context."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(path=str(self._socket))
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=ASK_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, method: str, path: str) -> str | None:
        """The text of an answer; None when Envoy gives none."""
        assert self._session is not None
        try:
            async with self._session.request(method, f"http://admin{path}") as response:
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def is_ready(self) -> bool:
        """True once Envoy serves, and asks the picker: until its first health check, calls would get no tickets. With
        keys there is no health check: calls wait for the picker."""
        if await self.ask("GET", "/ready") is None:
            return False
        lines = (await self.ask("GET", "/clusters") or "").splitlines()
        return any(line.startswith(f"{PICKER}::") and line.endswith("::health_flags::healthy") for line in lines)

    async def knows(self, address: str) -> bool:
        """True once the engine at an address is in force."""
        return f"::{address}::" in (await self.ask("GET", "/clusters") or "")

    async def active(self) -> int | None:
        """Requests being served; None when Envoy does not answer."""
        text = await self.ask("GET", f"/stats?filter=^{_ACTIVE}$")
        return int(text.rpartition(":")[2]) if text else None

    async def connections(self) -> int | None:
        """Connections of clients; None when Envoy does not answer."""
        text = await self.ask("GET", f"/stats?filter=^{_CONNECTIONS}$")
        return int(text.rpartition(":")[2]) if text else None

    async def metrics(self) -> str | None:
        """Envoy's own metrics, in Prometheus' text format; None when it does not answer."""
        return await self.ask("GET", "/stats/prometheus?usedonly")

    async def is_gone(self) -> bool:
        """True when nothing listens on the socket; one that hangs is there."""
        assert self._session is not None
        try:
            async with self._session.get("http://admin/ready"):
                return False
        except aiohttp.ClientConnectorError as error:
            # A socket whose backlog is full refuses, too, with another error.
            return error.os_error.errno in _NO_LISTENER
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def until_gone(self, limit_s: float) -> None:
        """Returns when Envoy has ended, after `limit_s` at the latest."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + limit_s
        while loop.time() < ends and not await self.is_gone():  # noqa: ASYNC110 - Envoy does not tell
            await asyncio.sleep(POLL_S)

    async def drain(self, settle_s: float, limit_s: float) -> None:
        """Returns when no request is being served, after `limit_s` at the latest.

        For `settle_s` new requests are still served, because Services send clients for a moment longer; each answer
        closes its connection, so that clients come back to another front. Returns early when Envoy has ended.
        """
        if await self.is_gone():
            return
        loop = asyncio.get_running_loop()
        ends = loop.time() + limit_s
        await self.ask("POST", "/drain_listeners?graceful&skip_exit")
        await asyncio.sleep(min(settle_s, limit_s))
        while loop.time() < ends and await self.active():  # noqa: ASYNC110 - Envoy does not tell
            await asyncio.sleep(POLL_S)
