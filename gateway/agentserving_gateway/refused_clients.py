"""The audit log's lines about clients that the gateway does not let in. Never a key or a JWT: ids and addresses."""

from __future__ import annotations

import time

from agentserving_process.audit import Refusals

from agentserving_gateway.errors import HttpError


class RefusedClients:
    """One per process."""

    def __init__(self) -> None:
        self._lines = Refusals(time.monotonic())

    def record(self, error: HttpError, peer: str, path: str) -> None:
        """Writes a line, or counts it, if the error says that someone was not let in. `peer`: address of the client."""
        if error.refusal:
            self._lines.refused(
                time.monotonic(), outcome="UNAUTHENTICATED", reason=error.refusal, role="client",
                who=error.credential, peer=peer, method=path,
            )  # fmt: skip
