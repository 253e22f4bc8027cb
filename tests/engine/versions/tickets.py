"""Tickets for the engine of the version tests."""

from __future__ import annotations

from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import IssuerKeys, Ticket, sign

SECRET = b"0123456789abcdef"
KEY = signing_key(SECRET)
KEYS = IssuerKeys([KEY.public_key()])
ENGINE_ID = "engine"
TENANT = "default"


def ticket(program: str, call: str, attained_us: int = 0, tenant: str = TENANT, service: int = 0) -> str:
    """A signed account of `program` for one call on this engine."""
    return sign(
        Ticket(
            call_id=call, attempt=1, program_id=program, root_program_id=program, tenant=tenant, thread_id="",
            engine_id=ENGINE_ID, attained_service_us=attained_us, wait_us=0, policy_version=1, epoch=1,
            expires_unix_s=1 << 40, program_arrival_us=42, service_class=service,
        ),
        KEY,
    )  # fmt: skip
