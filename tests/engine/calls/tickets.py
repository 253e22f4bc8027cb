"""Tickets for engine "e", signed with KEY."""

from __future__ import annotations

from typing import Any

from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import IssuerKeys, Ticket, sign, sign_for_gateway

SECRET = b"0123456789abcdef"
KEY = signing_key(SECRET)
GATEWAY = signing_key(b"a gateway's secret")
KEYS = IssuerKeys([KEY.public_key()], [GATEWAY.public_key()])


def ticket_of(
    call: str = "p.1.0", account_us: int = 100, *, expires: int = 1000, tenant: str = "default", **more: Any
) -> Ticket:
    """The ticket of a call of program `p`, whose root is itself."""
    values = {
        "call_id": call, "attempt": 1, "program_id": "p", "root_program_id": "p", "tenant": tenant, "thread_id": "",
        "engine_id": "e", "attained_service_us": account_us, "wait_us": 7, "policy_version": 1, "epoch": 1,
        "expires_unix_s": expires, "program_arrival_us": 42,
    }  # fmt: skip
    return Ticket(**{**values, **more})


def ticket(call: str = "p.1.0", account_us: int = 100, **more: Any) -> str:
    """The same, signed by the control plane."""
    return sign(ticket_of(call, account_us, **more), KEY)


def gateway_ticket(call: str, **more: Any) -> str:
    """The same, signed by a gateway."""
    return sign_for_gateway(ticket_of(call, **more), GATEWAY)
