"""Tickets of a gateway, for calls that no control plane has admitted: they vouch for the tenant, and for no account.

Engines run such calls behind all others, so a gateway that is taken over can make its calls wait, and nothing more.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from agentserving.contract.ids import EngineId, ProgramId, Tenant
from agentserving.contract.signatures import SigningKey
from agentserving.contract.ticket import Ticket, sign_for_gateway

LIFETIME_S = 600


class OwnTickets:
    """Signs with the first of `keys()`."""

    def __init__(self, keys: Callable[[], Sequence[SigningKey]]) -> None:
        self._keys = keys

    def ticket(self, tenant: Tenant, program_id: ProgramId, engines: Sequence[EngineId], now_unix_s: float) -> str:
        """For one call on any of the engines, at least one."""
        first, *others = engines
        ticket = Ticket(
            call_id=uuid.uuid4().hex,
            attempt=1,
            program_id=program_id,
            root_program_id=program_id,
            tenant=tenant,
            thread_id="",
            engine_id=first,
            attained_service_us=0,
            wait_us=0,
            policy_version=0,
            epoch=0,
            expires_unix_s=int(now_unix_s) + LIFETIME_S,
            fallbacks=tuple(others),
        )
        return sign_for_gateway(ticket, self._keys()[0])
