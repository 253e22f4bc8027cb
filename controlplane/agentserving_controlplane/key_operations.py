"""Keys of clients and administrators: made, listed, revoked, expired. Tokens of parts that were given at the start.

Rows are stored under `keys/`, next to the table. A revocation takes effect here immediately, reaches gateways by their
WatchKeys streams, and ends the open streams of the key; then it is awaited by the store. Rows of keys that have
been invalid for RETENTION_S are removed, so that a caller learns for a while why its key is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from agentserving.contract.identity import Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRefusal, KeyRow, KeySet, NewKey, decode_row, encode_row, new_key
from agentserving.contract.service_class import ServiceClass

from agentserving_controlplane.errors import ConflictError, ExistsError, InvalidError, NotFoundError, OverloadedError
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.store.port import Write

log = structlog.get_logger()

KEYS_PREFIX = "keys/"
# Of a cluster, and of one tenant; invalid keys count while their rows are retained. A row has about 300 bytes.
MAX_KEYS, MAX_KEYS_OF_TENANT = 10_000, 1000
MAX_NAME_BYTES = 128
MIN_LIFETIME_S, MAX_LIFETIME_S = 60.0, 10 * 365 * 86_400.0
RETENTION_S = 7 * 86_400
# Answers to CreateKey that can be repeated: the only place, and time, in which a key's text is remembered.
ANSWERS_KEPT_S, MAX_ANSWERS_KEPT = 600.0, 1000
MAX_PAGE = 1000
_KEY_ROLES = (Role.CLIENT, Role.ADMIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateKey:
    """A request for a key. `idempotency_key` "" = none; `caller`: the credential that makes it."""

    role: Role
    tenant: Tenant
    name: str = ""
    # 0 = for ever.
    lifetime_s: float = 0.0
    idempotency_key: str = ""
    caller: str = ""
    # 0 = unbounded.
    calls_per_minute: int = 0
    prompt_tokens_per_minute: int = 0
    service_class: ServiceClass = ServiceClass.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """What a watcher has missed. `reset`: `changed` are all keys of clients."""

    version: int
    reset: bool
    changed: Sequence[KeyRow]
    removed: Sequence[str]


class _Stored(msgspec.Struct, kw_only=True):
    """A row in the store, with what recognises a repeated CreateKey."""

    row: msgspec.Raw
    idempotency_key: str = ""
    caller: str = ""


class KeyOperations:
    """KeyService. `given`: rows of --bootstrap-keys, which are never stored and cannot be revoked."""

    def __init__(self, state: LeaderState, given: Sequence[KeyRow] = ()) -> None:
        self._state = state
        self._given = frozenset(row.key_id for row in given)
        self.keys = KeySet(given)
        # Called with a key id and the reason when a key has become invalid; and after each change.
        self.on_end: set[Callable[[str, KeyRefusal], None]] = set()
        self.listeners: set[Callable[[], None]] = set()
        # Versions of the latest changes by key id, oldest first.
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._version, self._oldest = 1, 1
        # (credential, idempotency key) -> the request, its answer, its commit, steady seconds.
        self._answers: OrderedDict[tuple[str, str], tuple[CreateKey, NewKey, int, float]] = OrderedDict()
        self._made_with: dict[tuple[str, str], str] = {}
        self._checked_unix_s = 0.0

    def restore(self, data: bytes) -> None:
        """Takes in a row of the store. ValueError when it cannot be read."""
        stored = msgspec.json.decode(data, type=_Stored)
        row = decode_row(bytes(stored.row))
        if row.key_id not in self._given:
            self.keys.put(row)
        if stored.idempotency_key:
            self._made_with[(stored.caller, stored.idempotency_key)] = row.key_id

    # -- reading -------------------------------------------------------------------------------------------------

    def page(self, tenant: str, after: str, size: int) -> tuple[list[KeyRow], str]:
        """Rows in the order of their ids, of one tenant or of all (""); and where the next page begins."""
        if not 0 <= size <= MAX_PAGE:
            raise InvalidError("PAGE_TOO_LARGE", f"page_size: 0 to {MAX_PAGE}", field="page_size")
        rows = sorted(
            (row for row in self.keys if row.key_id > after and tenant in ("", row.tenant)), key=lambda row: row.key_id
        )
        page = rows[: size or MAX_PAGE]
        return page, page[-1].key_id if len(rows) > len(page) else ""

    def changes_since(self, version: int) -> KeyChanges:
        """Changes of clients' keys after a version; all of them for 0 and for a version that is too old."""
        if version < self._oldest:
            return KeyChanges(self._version, True, [row for row in self.keys if row.role is Role.CLIENT], [])
        changed: list[KeyRow] = []
        removed: list[str] = []
        for key_id in reversed(self._changes):
            if self._changes[key_id] <= version:
                break
            row = self.keys.get(key_id)
            if row is None:
                removed.append(key_id)
            elif row.role is Role.CLIENT:
                changed.append(row)
        return KeyChanges(self._version, False, changed, removed)

    # -- changing ------------------------------------------------------------------------------------------------

    async def create(self, request: CreateKey) -> NewKey:
        """Makes a key; durable. A repeated request with an idempotency key gets the same answer."""
        now = self._state.now()
        name = (request.caller, request.idempotency_key)
        known = self._answers.get(name) if request.idempotency_key else None
        if known is not None and now.steady_us / 1e6 - known[3] <= ANSWERS_KEPT_S:
            if known[0] != request:
                raise ExistsError(
                    "IDEMPOTENCY_KEY_REUSED", "idempotency_key: used for another request", field="idempotency_key"
                )
            await self._state.commits.durable(known[2])
            return known[1]
        self._check(request, name)
        made = self._new(request, now.unix_us / 1e6)
        if request.idempotency_key:
            self._made_with[name] = made.row.key_id
        number = self._put(made.row)
        if request.idempotency_key:
            self._answers[name] = (request, made, number, now.steady_us / 1e6)
            self._answers.move_to_end(name)
            while len(self._answers) > MAX_ANSWERS_KEPT:
                self._answers.popitem(last=False)
        await self._state.commits.durable(number)
        return made

    def _check(self, request: CreateKey, name: tuple[str, str]) -> None:
        key_id = self._made_with.get(name) if request.idempotency_key else None
        if key_id is not None:
            raise ExistsError(
                "KEY_EXISTS",
                f"key {key_id} was made by this request, and its text is gone: revoke it and make another",
                field="idempotency_key",
            )
        if request.role not in _KEY_ROLES:
            raise InvalidError("BAD_ROLE", "role: CLIENT or ADMIN; parts have certificates or tokens", field="role")
        if (request.role is Role.CLIENT) != bool(request.tenant):
            raise InvalidError("BAD_TENANT", "tenant: needed for a client, empty for an administrator", field="tenant")
        if len(request.name.encode()) > MAX_NAME_BYTES:
            raise InvalidError("NAME_TOO_LONG", f"name: at most {MAX_NAME_BYTES} bytes", field="name")
        if request.lifetime_s and not MIN_LIFETIME_S <= request.lifetime_s <= MAX_LIFETIME_S:
            raise InvalidError("BAD_LIFETIME", "lifetime: one minute to ten years", field="lifetime")
        for field in ("calls_per_minute", "prompt_tokens_per_minute"):
            bound = getattr(request, field)
            if bound < 0 or (bound and request.role is not Role.CLIENT):
                raise InvalidError("BAD_RATE", f"{field}: at least 0, and for clients only", field=field)
        if request.service_class and request.role is not Role.CLIENT:
            raise InvalidError("BAD_SERVICE_CLASS", "service_class: for clients only", field="service_class")
        self._state.check_room()
        if len(self.keys) >= MAX_KEYS:
            raise OverloadedError("TOO_MANY_KEYS", f"a cluster has at most {MAX_KEYS} keys: revoke unused ones")
        if request.tenant and sum(row.tenant == request.tenant for row in self.keys) >= MAX_KEYS_OF_TENANT:
            raise OverloadedError(
                "TOO_MANY_KEYS", f"a tenant has at most {MAX_KEYS_OF_TENANT} keys: revoke unused ones"
            )

    def _new(self, request: CreateKey, now_unix_s: float) -> NewKey:
        while True:
            made = new_key(
                request.role, request.tenant, request.name, now_unix_s=now_unix_s, lifetime_s=request.lifetime_s
            )
            if self.keys.get(made.row.key_id) is None:
                row = msgspec.structs.replace(
                    made.row,
                    calls_per_minute=request.calls_per_minute,
                    prompt_tokens_per_minute=request.prompt_tokens_per_minute,
                    service_class=request.service_class,
                )
                return NewKey(made.text, row)

    async def revoke(self, key_id: str) -> KeyRow:
        """Ends a key; effective immediately, durable when this returns. NotFoundError, ConflictError."""
        row = self.keys.get(key_id)
        if row is None:
            raise NotFoundError("KEY_NOT_FOUND", f"no key {key_id!r}", field="key_id")
        if key_id in self._given:
            raise ConflictError(
                "GIVEN_KEY", f"key {key_id} comes from --bootstrap-keys: remove it there and restart the control plane"
            )
        number = self._state.commits.number
        if not row.revoked_unix_s:
            row = msgspec.structs.replace(row, revoked_unix_s=max(1, self._state.now().unix_us // 1_000_000))
            number = self._put(row)
            self._ended(key_id, KeyRefusal.KEY_REVOKED)
        await self._state.commits.durable(number)
        return row

    def tick(self) -> None:
        """Ends the streams of keys that have expired since the last time; removes rows that are long invalid."""
        before, now_s = self._checked_unix_s, self._state.now().unix_us / 1e6
        self._checked_unix_s = now_s
        gone = []
        for row in self.keys:
            if row.expires_unix_s and before < row.expires_unix_s <= now_s and not row.revoked_unix_s:
                self._ended(row.key_id, KeyRefusal.KEY_EXPIRED)
            invalid_s = row.revoked_unix_s or row.expires_unix_s
            if invalid_s and invalid_s + RETENTION_S < now_s and row.key_id not in self._given:
                gone.append(row.key_id)
        for key_id in gone:
            self.keys.remove(key_id)
            self._made_with = {name: made for name, made in self._made_with.items() if made != key_id}
            self._state.commits.put_together([Write(f"{KEYS_PREFIX}{key_id}", None)])
            self._note(key_id)

    def _ended(self, key_id: str, reason: KeyRefusal) -> None:
        for tell in list(self.on_end):
            tell(key_id, reason)

    def _put(self, row: KeyRow) -> int:
        """Stores a row; returns the number of the commit."""
        self.keys.put(row)
        made_with = (name for name, key_id in self._made_with.items() if key_id == row.key_id)
        caller, idempotency_key = next(made_with, ("", ""))
        stored = _Stored(row=msgspec.Raw(encode_row(row)), idempotency_key=idempotency_key, caller=caller)
        number = self._state.commits.put_together([Write(f"{KEYS_PREFIX}{row.key_id}", msgspec.json.encode(stored))])
        self._note(row.key_id)
        return number

    def _note(self, key_id: str) -> None:
        self._version += 1
        self._changes[key_id] = self._version
        self._changes.move_to_end(key_id)
        while len(self._changes) > MAX_KEYS:
            self._oldest = self._changes.popitem(last=False)[1]
        for listener in list(self.listeners):
            listener()
