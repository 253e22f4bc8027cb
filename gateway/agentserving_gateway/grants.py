"""Grants of this gateway: what the batch service is given of a client, and accepted from it as a credential.

Made and verified with the key that signs the gateway's own tickets; all gateways of a cluster have the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from agentserving.contract.grant import CALLS_S, REQUEST_S, Grant, GrantRefusedError, sign, verify
from agentserving.contract.signatures import SigningKey


class Grants:
    """Signs with the first of `keys()`, and accepts those of all. `now`: Unix time."""

    def __init__(self, keys: Callable[[], Sequence[SigningKey]], now: Callable[[], float] = time.time) -> None:
        self._keys, self._now = keys, now

    def of_client(self, tenant: str, credential: str, *, may_call: bool) -> str:
        """The text of a grant for one request, or for the calls of the batch that it creates."""
        expires = int(self._now()) + (CALLS_S if may_call else REQUEST_S)
        grant = Grant(tenant=tenant, credential=credential, expires_unix_s=expires, may_call=may_call)
        return sign(grant, self._keys()[0])

    def read(self, text: str) -> Grant:
        """A grant that permits calls. GrantRefusedError."""
        found = verify(text, [key.public_key() for key in self._keys()], self._now())
        if not found.may_call:
            raise GrantRefusedError("for one request to the batch service, not for calls")
        return found
