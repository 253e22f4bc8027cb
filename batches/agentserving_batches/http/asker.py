"""Who asks: the tenant of the grant that the gateway has put on the request. Without one it is not of a gateway."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from agentserving.contract.grant import HEADER, Grant, GrantRefusedError, verify
from agentserving.contract.signatures import VerifyingKey
from aiohttp import web

from agentserving_batches.errors import RefusedError

ASKER = web.RequestKey("asker", Grant)
GRANT_TEXT = web.RequestKey("grant_text", str)


class Askers:
    """`keys`: public keys of gateways. `now`: Unix time."""

    def __init__(self, keys: Callable[[], Sequence[VerifyingKey]], now: Callable[[], float] = time.time) -> None:
        self._keys, self._now = keys, now

    def of(self, request: web.Request) -> tuple[Grant, str]:
        """The grant and its text. RefusedError 503: the gateway's picker was away, or its clock or key is wrong."""
        text = request.headers.get(HEADER, "")
        try:
            if not text:
                raise GrantRefusedError("the gateway has sent none; its picker may be restarting")
            return verify(text, self._keys(), self._now()), text
        except GrantRefusedError as error:
            raise RefusedError(
                503, f"who asks could not be verified: {error}. Try again in a moment; if that lasts, compare the "
                "clocks of gateway and batch service, and their --ticket-key-file and --gateway-key-file",
                "invalid_grant", type="server_error", retry_after_s=1,
            ) from None  # fmt: skip
