"""Tickets: what a call carries to its engine, signed by the control plane.

A ticket travels in ``X-Session-ID``, which vLLM passes to the scheduler as ``request.session_id``. Layout, base64url
without padding: ``issuer(1) | msgpack array of the fields below | Ed25519 signature (64)``. Engines have public keys
only, so an engine that is taken over makes no tickets. Pure: the Unix time is an argument.

While no control plane can be reached, a gateway signs tickets with a key of its own. They name the tenant, but no
account: engines run such calls last, whatever else the ticket says.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from agentserving.contract.signatures import SIGNATURE_BYTES, SigningKey, VerifyingKey, is_signed

# Version 1 was signed with a key that engines shared.
_CONTROL_PLANE, _GATEWAY = b"\x02", b"\x03"
MAX_TICKET_CHARS = 2048


class InvalidTicketError(ValueError):
    """``reason`` is one of malformed, forged, expired, wrong_engine, wrong_boot: a metric label.

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
    # Engines that may run the call if `engine_id` fails, in the order in which they are tried.
    fallbacks: tuple[str, ...] = ()
    # Boot of each engine of `engine_ids`: what one boot has served is unknown to the next. Missing or "" = any boot.
    boots: tuple[str, ...] = ()
    # ServiceClass of the root program; 0 = standard, as from a control plane that has no classes of service.
    service_class: int = 0

    @property
    def engine_ids(self) -> tuple[str, ...]:
        """All engines on which the ticket is good, in order."""
        return (self.engine_id, *self.fallbacks)


class Verified(NamedTuple):
    """A ticket with a good signature. Not `managed`: a gateway signed it, and it vouches for the tenant alone."""

    ticket: Ticket
    managed: bool


class IssuerKeys(NamedTuple):
    """Public keys of those who sign tickets, the newest first."""

    control_plane: Sequence[VerifyingKey]
    gateway: Sequence[VerifyingKey] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ticket)


def sign(ticket: Ticket, key: SigningKey) -> str:
    """The header value of a call's ticket, signed by the control plane."""
    return _signed(_CONTROL_PLANE, ticket, key)


def sign_for_gateway(ticket: Ticket, key: SigningKey) -> str:
    """The header value for a call that no control plane has admitted, signed by a gateway."""
    return _signed(_GATEWAY, ticket, key)


def _signed(issuer: bytes, ticket: Ticket, key: SigningKey) -> str:
    body = issuer + _encoder.encode(ticket)
    return base64.urlsafe_b64encode(body + key.sign(body)).rstrip(b"=").decode("ascii")


def verify(text: str, keys: IssuerKeys, *, engine_id: str, now_unix_s: float, boot_id: str = "") -> Verified:
    """The ticket in `text`, signed with any of its issuer's keys. Raises InvalidTicketError, whatever `text` contains.

    `boot_id`: of the engine that asks; "" = the boot is not checked.
    """
    if len(text) > MAX_TICKET_CHARS:
        raise InvalidTicketError("malformed")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidTicketError("malformed") from None
    body, signature, issuer = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:], raw[:1]
    # Accept the canonical spelling only: base64 also decodes padding, the other alphabet and stray low bits.
    canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") == text
    if not canonical or not body or issuer not in (_CONTROL_PLANE, _GATEWAY):
        raise InvalidTicketError("malformed")
    managed = issuer == _CONTROL_PLANE
    if not any(is_signed(body, signature, key) for key in (keys.control_plane if managed else keys.gateway)):
        raise InvalidTicketError("forged")
    try:
        ticket = _decoder.decode(body[1:])
    except msgspec.DecodeError:
        raise InvalidTicketError("malformed") from None
    if ticket.expires_unix_s < now_unix_s:
        raise InvalidTicketError("expired", now_unix_s - ticket.expires_unix_s)
    _check_engine(ticket, engine_id, boot_id)
    return Verified(ticket, managed)


def _check_engine(ticket: Ticket, engine_id: str, boot_id: str) -> None:
    for at, named in enumerate(ticket.engine_ids):
        if named == engine_id:
            boot = ticket.boots[at] if at < len(ticket.boots) else ""
            if boot_id and boot and boot != boot_id:
                raise InvalidTicketError("wrong_boot")
            return
    raise InvalidTicketError("wrong_engine")
