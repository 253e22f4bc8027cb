"""Keys of clients and tokens of parts: their text, what is stored of them, and how a caller's key is verified.

A key is `as_<id>_<secret>`: 8 characters of [a-z0-9] to find it by, and 32 random bytes in base64url. Only the SHA-256
of the whole text is stored; with 256 bits of entropy a slow hash would protect nothing more. The control plane and the
gateway verify with the same `KeySet`. Pure: the Unix time and the source of random bytes are arguments.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from agentserving.contract.identity import NO_TENANT, Caller, Role
from agentserving.contract.ids import Tenant
from agentserving.contract.key_text import parse as parse
from agentserving.contract.service_class import ServiceClass

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_ID_CHARS, _SECRET_BYTES, _HASH_BYTES = 8, 32, 32
_BEARER = "bearer "


class KeyRefusal(enum.StrEnum):
    """Why a caller is not known: the reason of UNAUTHENTICATED, and a metric label."""

    NO_CREDENTIAL = "NO_CREDENTIAL"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    KEY_EXPIRED = "KEY_EXPIRED"
    KEY_REVOKED = "KEY_REVOKED"


class KeyRefusedError(Exception):
    """A key that opens nothing. `key_id`: for the audit log, when a key of this id exists."""

    def __init__(self, reason: KeyRefusal, key_id: str = "") -> None:
        super().__init__(_MESSAGES[reason].format(key_id=key_id))
        self.reason, self.key_id = reason, key_id


_MESSAGES = {
    KeyRefusal.NO_CREDENTIAL: "no key was sent: set `authorization: Bearer as_...` (agentserving key create makes one)",
    KeyRefusal.UNKNOWN_KEY: "this key is not known here: check that it is complete and of this cluster",
    KeyRefusal.KEY_EXPIRED: "key {key_id} has expired: make another with `agentserving key create`",
    KeyRefusal.KEY_REVOKED: "key {key_id} has been revoked: make another with `agentserving key create`",
}


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a key. Times in Unix seconds."""

    key_id: str
    # Of the whole text.
    sha256: bytes
    role: Role
    # For clients.
    tenant: Tenant = NO_TENANT
    # What the key is for; for sidecars the engine id, "" = any engine.
    name: str = ""
    created_unix_s: int = 0
    # 0 = never.
    expires_unix_s: int = 0
    # 0 = not revoked.
    revoked_unix_s: int = 0
    # For clients; 0 = unbounded. Each gateway counts for itself.
    calls_per_minute: int = 0
    prompt_tokens_per_minute: int = 0
    # Of the programs that are opened with it, and the best that it may ask for; UNSPECIFIED = as its tenant.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED

    def __post_init__(self) -> None:
        if len(self.sha256) != _HASH_BYTES:
            raise ValueError(f"sha256: {len(self.sha256)} bytes instead of {_HASH_BYTES}")
        if (self.role is Role.CLIENT) != bool(self.tenant):
            raise ValueError("tenant: clients have one, other roles have none")

    def refusal(self, now_unix_s: float) -> KeyRefusal | None:
        """Why the key is not valid at this time; None while it is."""
        if self.revoked_unix_s:
            return KeyRefusal.KEY_REVOKED
        if self.expires_unix_s and self.expires_unix_s <= now_unix_s:
            return KeyRefusal.KEY_EXPIRED
        return None

    def caller(self) -> Caller:
        """Who holds the key."""
        name = self.name if self.role is Role.SIDECAR else ""
        return Caller(
            role=self.role,
            name=name,
            tenant=self.tenant,
            credential=self.key_id,
            service_class=self.service_class,
        )


class NewKey(NamedTuple):
    """A key and its row. The text exists only here: print it once and keep the row."""

    text: str
    row: KeyRow


def new_key(
    role: Role,
    tenant: str = "",
    name: str = "",
    *,
    now_unix_s: float,
    lifetime_s: float = 0,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> NewKey:
    """A key that is valid for `lifetime_s` from now, for ever if 0. ValueError when role and tenant do not fit."""
    # 8 digits to base 36 of 64 random bits: the bias is 2^-22.
    number, digits = int.from_bytes(random(8)), []
    for _ in range(_ID_CHARS):
        number, digit = divmod(number, len(_ID_ALPHABET))
        digits.append(_ID_ALPHABET[digit])
    key_id = "".join(digits)
    secret = base64.urlsafe_b64encode(random(_SECRET_BYTES)).rstrip(b"=").decode("ascii")
    text = f"as_{key_id}_{secret}"
    row = KeyRow(
        key_id=key_id,
        sha256=hash_of(text),
        role=role,
        tenant=Tenant(tenant),
        name=name,
        created_unix_s=int(now_unix_s),
        expires_unix_s=int(now_unix_s + lifetime_s) if lifetime_s else 0,
    )
    return NewKey(text, row)


def hash_of(text: str) -> bytes:
    """What is stored of a key's text. ValueError for text that is not ASCII."""
    return hashlib.sha256(text.encode("ascii")).digest()


def from_authorization(value: str) -> str:
    """The key in `Authorization: Bearer <key>`; empty when the value is of another form."""
    return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else ""


class KeySet:
    """The rows by id. The owner changes it on its event loop; `verify` waits for nothing."""

    def __init__(self, rows: Iterable[KeyRow] = ()) -> None:
        self._rows: dict[str, KeyRow] = {row.key_id: row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[KeyRow]:
        return iter(self._rows.values())

    def get(self, key_id: str) -> KeyRow | None:
        return self._rows.get(key_id)

    def put(self, row: KeyRow) -> None:
        """Adds or replaces a row."""
        self._rows[row.key_id] = row

    def remove(self, key_id: str) -> None:
        """Forgets a row."""
        self._rows.pop(key_id, None)

    def replace(self, rows: Iterable[KeyRow]) -> None:
        """Makes these the only rows."""
        self._rows = {row.key_id: row for row in rows}

    def verify(self, text: str, now_unix_s: float) -> KeyRow:
        """The row of a key that is valid now. KeyRefusedError, whatever `text` contains."""
        if not text:
            raise KeyRefusedError(KeyRefusal.NO_CREDENTIAL)
        key_id = parse(text)
        row = self._rows.get(key_id) if key_id is not None else None
        # Only who presents the whole key learns that it is expired or revoked.
        if row is None or not hmac.compare_digest(row.sha256, hash_of(text)):
            raise KeyRefusedError(KeyRefusal.UNKNOWN_KEY)
        refusal = row.refusal(now_unix_s)
        if refusal is not None:
            raise KeyRefusedError(refusal, row.key_id)
        return row


_encoder = msgspec.json.Encoder()
_rows_decoder = msgspec.json.Decoder(list[KeyRow])
_row_decoder = msgspec.json.Decoder(KeyRow)


def encode_row(row: KeyRow) -> bytes:
    """One row as JSON, for the store."""
    return _encoder.encode(row)


def decode_row(data: bytes) -> KeyRow:
    """Inverse of `encode_row`. ValueError."""
    return _row_decoder.decode(data)


def encode_rows(rows: Iterable[KeyRow]) -> bytes:
    """Rows as one JSON array: the form of `--bootstrap-keys` files and of a gateway's cache. No secrets are in it."""
    return _encoder.encode(list(rows))


def decode_rows(data: bytes) -> list[KeyRow]:
    """Inverse of `encode_rows`. ValueError says what is wrong."""
    return _rows_decoder.decode(data)
