"""Who may enter: each call needs a ticket, which is good for one HTTP request. Pure, except for what `check` reads.

Other requests than calls need one of a gateway (doors.py), which is good until it expires.

An engine that accepts requests in several processes has an entrance in each; a ticket that is used in two of them is
found by the scheduler, which sees all requests.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from agentserving.contract.ids import CallId, ProgramId, ProgramKey, Tenant
from agentserving.contract.ticket import InvalidTicketError

from agentserving_engine.calls.ended import EndedCalls
from agentserving_engine.calls.rejections import Rejections
from agentserving_engine.calls.salts import salt_of
from agentserving_engine.calls.tickets import TicketCheck, Unticketed, joined

_REFUSALS = {
    "missing": "this engine serves calls of its gateway only: send the call to the gateway",
    "expired": "the ticket of this call has expired: send the call to the gateway again",
    "wrong_boot": "the engine has restarted since this call was admitted: send the call to the gateway again",
    "pod_only": "this path is served within the engine's pod only",
    "no_gateway": "this path is served to gateways only: send the request to the gateway",
    "replayed": "the ticket of this call has been used: send each call to the gateway",
}
_INVALID = "the ticket of this call is not valid on this engine: send the call to the gateway"


class RefusedEntryError(Exception):
    """The request must not reach vLLM: 403 with this message and code, a closed word."""

    def __init__(self, reason: str) -> None:
        self.message = _REFUSALS.get(reason, _INVALID)
        super().__init__(self.message)
        self.code = reason if reason == "pod_only" else f"ticket_{reason}"


@dataclass(frozen=True, slots=True)
class Entry:
    """What vLLM is given: the session (None = no header) and the cache salt ("" = none).

    `program`: the root program of the call; None where the ticket says none.
    """

    session_id: str | None
    salt: str
    program: ProgramKey | None = None


class Entrance:
    """One per process that accepts requests."""

    def __init__(
        self, check: Callable[[], TicketCheck], *, separate_caches: bool, pod_secret: str | None = None
    ) -> None:
        """`check` returns which tickets are taken: the boot may become known later. `pod_secret`: see doors.py."""
        self.pod_secret = pod_secret
        self._check, self._separate_caches = check, separate_caches
        self._used = EndedCalls()
        self.rejections = Rejections()

    def enter(self, ticket: str | None, now_us: int, unix_s: float) -> Entry:
        """Raises RefusedEntryError where tickets are required, and else lets the request in without a tenant."""
        check = self._check()
        exchange = secrets.token_hex(8)
        if not ticket or not check.has_keys:
            return self._without(check, None, exchange, "missing")
        try:
            found = check.read(ticket, unix_s).ticket
        except InvalidTicketError as error:
            self.rejections.add(error.reason, now_us, expired_for_s=error.expired_for_s)
            return self._without(check, ticket, exchange, error.reason)
        if self._used.base_id(CallId(found.call_id)) is not None:
            self.rejections.add("replayed", now_us)
            return self._without(check, ticket, exchange, "replayed")
        self._used.add(CallId(found.call_id), exchange)
        salt = salt_of(found.tenant) if self._separate_caches else ""
        program = ProgramKey(Tenant(found.tenant), ProgramId(found.root_program_id)) if found.root_program_id else None
        return Entry(joined(ticket, exchange), salt, program)

    @property
    def is_closed(self) -> bool:
        """Nothing is served to those without a credential."""
        return self._check().unticketed is Unticketed.REFUSE

    def read(self, ticket: str, unix_s: float) -> None:
        """For a request that is no call. Raises RefusedEntryError unless the ticket is a gateway's, for this engine."""
        if not ticket:
            raise RefusedEntryError("missing")
        try:
            found = self._check().read(ticket, unix_s)
        except InvalidTicketError as error:
            raise RefusedEntryError(error.reason) from error
        if found.managed:
            raise RefusedEntryError("no_gateway")

    @staticmethod
    def _without(check: TicketCheck, ticket: str | None, exchange: str, reason: str) -> Entry:
        if check.unticketed is Unticketed.REFUSE:
            raise RefusedEntryError(reason)
        # The scheduler refuses and counts it once more: it reports for all processes.
        return Entry(None if ticket is None else joined(ticket, exchange), "")
