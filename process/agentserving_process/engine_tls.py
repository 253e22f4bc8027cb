"""How our own HTTP clients reach engines: in the clear, or by TLS, when a CA says whose certificates engines have.

Engines are dialled by address, which no certificate contains. All engines of a cluster have one name in theirs, and no
other part has it.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import structlog
from agentserving.contract.names import ENGINE_NAME

from agentserving_process.supervision import CannotStartError

log = structlog.get_logger()


class EngineTls:
    """For aiohttp. `ca` None: engines speak http. The file is read again when it changes."""

    def __init__(self, ca: Path | None = None) -> None:
        """CannotStartError when the file cannot be read."""
        self._ca, self._known, self._complaint = ca, b"", ""
        self._context: ssl.SSLContext | None = None
        if ca is not None:
            try:
                self._renew(ca)
            except (OSError, ValueError) as error:
                raise CannotStartError(f"--engine-ca: {ca}: {error}") from None

    def url(self, address: str, path: str) -> str:
        """Of a path of an engine at host:port."""
        return f"{'http' if self._ca is None else 'https'}://{address}{path}"

    def options(self) -> dict[str, Any]:
        """Arguments of aiohttp's requests to engines."""
        if self._ca is None:
            return {}
        try:
            self._renew(self._ca)
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:
                log.error("cannot read the CA of engines, using the previous one", path=str(self._ca), error=str(error))
            self._complaint = str(error)
        return {"ssl": self._context, "server_hostname": ENGINE_NAME}

    def _renew(self, ca: Path) -> None:
        """OSError (ssl.SSLError), ValueError."""
        found = ca.read_bytes()
        if found == self._known:
            return
        context = ssl.create_default_context(cadata=found.decode("ascii"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context, self._known, self._complaint = context, found, ""
