"""Tickets for engine "e", signed with KEY."""

from __future__ import annotations

from typing import Any

from agentserving.contract.ticket import Ticket, sign

KEY = b"0123456789abcdef"


def ticket(
    call: str = "p.1.0", account_us: int = 100, *, expires: int = 1000, tenant: str = "default", **more: Any
) -> str:
    """The ticket of a call of program `p`, whose root is itself."""
    values = {
        "call_id": call, "attempt": 1, "program_id": "p", "root_program_id": "p", "tenant": tenant, "thread_id": "",
        "engine_id": "e", "attained_service_us": account_us, "wait_us": 7, "policy_version": 1, "epoch": 1,
        "expires_unix_s": expires, "program_arrival_us": 42,
    }  # fmt: skip
    return sign(Ticket(**{**values, **more}), KEY)
