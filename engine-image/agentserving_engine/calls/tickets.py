"""Which tickets this engine takes. Pure: keys come from a callable, the Unix time is an argument.

The middleware and the scheduler check tickets alike, in two processes. The middleware answers with a clear refusal; the
scheduler is the one that knows all calls, however many processes accept requests. The middleware adds a name of the
HTTP request to the ticket (`joined`), by which the scheduler knows the requests that one HTTP request has become.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from agentserving.contract.ticket import InvalidTicketError, IssuerKeys, Verified, verify

# No ticket contains it: they are base64url.
_SEPARATOR = "."


class Unticketed(Enum):
    """What becomes of a call without a valid ticket."""

    REFUSE = "refuse"
    LAST = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketCheck:
    """`keys`: of those who sign tickets; None = there are no tickets. `boot_id`: of this engine, "" = not checked."""

    engine_id: str
    keys: Callable[[], IssuerKeys] | None
    unticketed: Unticketed = Unticketed.LAST
    boot_id: str = ""

    @property
    def has_keys(self) -> bool:
        """Tickets can be verified."""
        return self.keys is not None

    def read(self, text: str, unix_s: float) -> Verified:
        """A ticket that is good here and now. Raises InvalidTicketError."""
        if self.keys is None:
            raise InvalidTicketError("forged")
        return verify(text, self.keys(), engine_id=self.engine_id, now_unix_s=unix_s, boot_id=self.boot_id)


def joined(ticket: str, exchange: str) -> str:
    """What vLLM is given as the session: the ticket, and a name of the HTTP request without a dot."""
    return f"{ticket}{_SEPARATOR}{exchange}"


def split(session_id: str) -> tuple[str, str]:
    """(ticket, name of the HTTP request or "")."""
    ticket, _, exchange = session_id.partition(_SEPARATOR)
    return ticket, exchange
