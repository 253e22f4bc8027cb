"""Tickets: what a call carries to its engine, signed with the cluster's key.

A ticket travels in ``X-Session-ID``, which vLLM passes to the scheduler as ``request.session_id``. Layout, base64url
without padding: ``version(1) | msgpack array of the fields below | HMAC-SHA256 truncated to 16 bytes``. Needs only
msgspec, which the engine process has. Pure: the Unix time is an argument.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

_VERSION = b"\x01"
_MAC_BYTES = 16
MAX_TICKET_CHARS = 2048


class InvalidTicketError(ValueError):
    """``reason`` is one of malformed, forged, expired, wrong_engine: a metric label.

    ``expired_for_s``: seconds since the expiry on the verifier's clock, 0 for the other reasons. Minutes mean that the
    clocks of the control plane and of the engine's node differ.
    """

    def __init__(self, reason: str, expired_for_s: float = 0.0) -> None:
        super().__init__(f"ticket refused: {reason}")
        self.reason = reason
        self.expired_for_s = expired_for_s


class Ticket(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What the engine must know about a call. Service and wait in microseconds, expiry in Unix seconds."""

    call_id: str
    attempt: int
    program_id: str
    root_program_id: str
    tenant: str
    thread_id: str
    engine_id: str
    attained_service_us: int
    wait_us: int
    policy_version: int
    epoch: int
    expires_unix_s: int
    # Arrival of the root program, Unix microseconds: the order of program-FCFS on every engine.
    program_arrival_us: int = 0
    # Class of the root program: selects the levels its calls go through.
    class_name: str = ""
    # Engines that may run the call if `engine_id` fails, in the order in which they are tried. Readers of versions that
    # know no fallbacks ignore it: to them the ticket is good on `engine_id` alone.
    fallbacks: tuple[str, ...] = ()

    @property
    def engine_ids(self) -> tuple[str, ...]:
        """All engines on which the ticket is good, in order."""
        return (self.engine_id, *self.fallbacks)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ticket)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_BYTES]


def sign(ticket: Ticket, key: bytes) -> str:
    """The header value of a ticket."""
    body = _VERSION + _encoder.encode(ticket)
    return base64.urlsafe_b64encode(body + _mac(key, body)).rstrip(b"=").decode("ascii")


def verify(text: str, *keys: bytes, engine_id: str, now_unix_s: float) -> Ticket:
    """The ticket in `text`, signed with any of the keys. Raises InvalidTicketError, whatever `text` contains."""
    if len(text) > MAX_TICKET_CHARS:
        raise InvalidTicketError("malformed")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidTicketError("malformed") from None
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    # Accept the canonical spelling only: base64 also decodes padding, the other alphabet and stray low bits.
    canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") == text
    if not canonical or not body.startswith(_VERSION):
        raise InvalidTicketError("malformed")
    if not any(hmac.compare_digest(mac, _mac(key, body)) for key in keys):
        raise InvalidTicketError("forged")
    try:
        ticket = _decoder.decode(body[1:])
    except msgspec.DecodeError:
        raise InvalidTicketError("malformed") from None
    if ticket.expires_unix_s < now_unix_s:
        raise InvalidTicketError("expired", now_unix_s - ticket.expires_unix_s)
    if engine_id != ticket.engine_id and engine_id not in ticket.fallbacks:
        raise InvalidTicketError("wrong_engine")
    return ticket
