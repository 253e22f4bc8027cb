"""Grants: what a gateway gives the batch service of a client that it has verified, signed by the gateway.

A grant names the tenant and the credential of a request. One that `may_call` is also a credential itself: with it the
batch service makes the calls of one batch for its tenant, at the same gateways, in the class of service `batch`, until
it expires or the client's key is revoked. So the service holds no key of a client, and can act for no tenant that has
not handed it a batch. Layout: `asg_` and, in base64url without padding, ``kind(1) | msgpack array | signature (64)``.
Pure: the Unix time is an argument.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import msgspec

from agentserving.contract.signatures import SIGNATURE_BYTES, SigningKey, VerifyingKey, is_signed

# On requests from a gateway to the batch service; never taken from a client.
HEADER = "x-agentserving-grant"
PREFIX = "asg_"
# Tickets of the same key begin with other bytes, so that neither is taken for the other.
_KIND = b"\x04"
MAX_CHARS = 2048
# For the request that it comes with: of both clocks, and of the time that a proxy between them may take.
REQUEST_S = 120
# For the calls of a batch: the longest completion window, and an hour for clocks and for requests on the way.
CALLS_S = 25 * 3600


class Grant(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """`credential`: the id of the client's key, or `jwt:<kid>:<sub>`; empty without keys. Expiry in Unix seconds."""

    tenant: str
    credential: str
    expires_unix_s: int
    may_call: bool = False


class GrantRefusedError(ValueError):
    """A text that is no valid grant; the message says why."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Grant)


def is_grant(text: str) -> bool:
    """Whether a credential claims to be one."""
    return text.startswith(PREFIX)


def sign(grant: Grant, key: SigningKey) -> str:
    """The text of a grant."""
    body = _KIND + _encoder.encode(grant)
    return PREFIX + base64.urlsafe_b64encode(body + key.sign(body)).rstrip(b"=").decode("ascii")


def verify(text: str, keys: Sequence[VerifyingKey], now_unix_s: float) -> Grant:
    """The grant in `text`, signed with any of the keys. GrantRefusedError, whatever `text` contains."""
    if not is_grant(text) or len(text) > MAX_CHARS:
        raise GrantRefusedError("not a grant of a gateway")
    encoded = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise GrantRefusedError("not a grant of a gateway") from None
    body, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    if body[:1] != _KIND:
        raise GrantRefusedError("not a grant of a gateway")
    if not any(is_signed(body, signature, key) for key in keys):
        raise GrantRefusedError("signed with a key that is not a gateway's")
    try:
        grant = _decoder.decode(body[1:])
    except msgspec.DecodeError:
        raise GrantRefusedError("not a grant of a gateway") from None
    if grant.expires_unix_s < now_unix_s:
        raise GrantRefusedError(f"expired {now_unix_s - grant.expires_unix_s:.0f} s ago")
    return grant
