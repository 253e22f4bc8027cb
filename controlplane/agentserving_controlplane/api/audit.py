"""The audit log: one JSON line (`event="audit"`) for each change and each refusal. Never prompts, never secrets.

Refusals are bounded, because anyone who reaches a port can cause them: REFUSALS_PER_S lines a second on average, and
the next line says how many were left out. Changes are not bounded: only callers with a credential can make them.
"""

from __future__ import annotations

import re
from typing import Any

import structlog
from agentserving.contract.identity import Caller

log = structlog.get_logger()

REFUSALS_PER_S, BURST = 10.0, 50.0
MAX_CHARS = 128
# Fields that name the object of a request, the first that is set.
_OBJECTS = ("call_id", "program_id", "engine_id", "key_id", "name")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,64}")


def object_of(*messages: Any) -> str:
    """What an RPC is about, from its request or answer; empty when neither says."""
    for message in messages:
        for field in _OBJECTS:
            found = getattr(message, field, "")
            if found and isinstance(found, str):
                return f"{field.removesuffix('_id')}/{found}"[:MAX_CHARS]
        for holder in ("key", "policy", "program"):
            if (inner := getattr(message, holder, None)) is not None and (found := object_of(inner)):
                return found
    return ""


def request_id_of(context: Any) -> str:
    """The caller's own number for a request (metadata x-request-id), if it is one."""
    for name, value in context.invocation_metadata() or ():
        if name == "x-request-id" and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return ""


class Audit:
    """Writes the lines. `refusals` counts all refusals, written or not, by reason."""

    def __init__(self) -> None:
        self.refusals: dict[str, int] = {}
        self._left, self._at_s, self._omitted = BURST, 0.0, 0

    def changed(self, caller: Caller, method: str, context: Any, outcome: str, about: str, tenant: str) -> None:
        """A change was made, or failed after it was permitted (`outcome`: OK or the name of a gRPC code)."""
        log.info("audit", **_fields(caller, method, context, about), tenant=tenant, outcome=outcome)

    def refused(
        self, caller: Caller, method: str, context: Any, outcome: str, reason: str, about: str, now_s: float
    ) -> None:
        """Someone was not let in. `now_s`: monotonic."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        self._left = min(BURST, self._left + (now_s - self._at_s) * REFUSALS_PER_S)
        self._at_s = now_s
        if self._left < 1:
            self._omitted += 1
            return
        self._left -= 1
        omitted, self._omitted = self._omitted, 0
        log.warning(
            "audit",
            **_fields(caller, method, context, about),
            tenant=caller.tenant,
            outcome=outcome,
            reason=reason,
            **({"omitted": omitted} if omitted else {}),
        )


def _fields(caller: Caller, method: str, context: Any, about: str) -> dict[str, str]:
    fields = {
        "who": caller.credential,
        "role": str(caller),
        "peer": str(context.peer())[:MAX_CHARS],
        "method": method,
        "object": about,
        "request_id": request_id_of(context),
    }
    return fields
