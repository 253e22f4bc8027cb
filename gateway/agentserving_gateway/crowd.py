"""Tells Envoy what share of its connections is open, so that it closes idle ones before there is no room for others.

Envoy bounds its connections and refuses those beyond, whoever holds them; a client without a key could hold all. A
bound for each address would hold back everyone behind one proxy or one node's address, so the idle ones go instead.
"""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path

import structlog

from agentserving_gateway.envoy.bootstrap import CROWDED
from agentserving_gateway.envoy_admin import EnvoyAdmin

log = structlog.get_logger()

EVERY_S = 0.5


class Crowd:
    """One per Envoy; `run` is a supervised task."""

    def __init__(self, admin: EnvoyAdmin, file: Path, max_connections: int) -> None:
        self._admin, self._file, self._max = admin, file, max_connections
        # Of the connections, from 0 to 1, as last known.
        self.share = 0.0

    @property
    def is_there(self) -> bool:
        """Whether idle connections are closed early."""
        return self.share >= CROWDED

    async def run(self) -> None:
        """Writes the share until it is cancelled. An Envoy that does not answer keeps the last one."""
        written = -1.0
        while True:
            count = await self._admin.connections()
            if count is not None:
                self.share = min(1.0, round(count / self._max, 2))
            if count is not None and self.share != written:
                written = self._write(self.share)
            await asyncio.sleep(EVERY_S)

    def _write(self, share: float) -> float:
        """What is in force now; NaN when it is not known."""
        # Not in the watched directory: Envoy looks at each file that moves into it.
        scratch = self._file.parent.parent / f"{self._file.name}.{os.getpid()}"
        try:
            scratch.write_text(f"{share}\n")
            scratch.replace(self._file)
        except OSError as error:
            log.error("cannot say how many connections are open", path=str(self._file), error=str(error))
            return math.nan
        return share
