"""Who a caller is: the URI in its certificate, or else the key in its metadata. And what servicers need of it.

A connection to the port of the parts has a certificate, whose URI names a role. Certificates without one say nothing;
a key is then needed, as on the clients' port and without TLS. A JWT is as good as a client's key, where there is an
issuer. What was verified travels in a context variable: each RPC
has a task of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import unquote

from agentserving.contract.identity import Caller, Identity, Role
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRefusal, KeyRefusedError, KeyRow, KeySet, from_authorization
from agentserving.contract.service_class import ServiceClass
from agentserving_process.web_tokens.verifier import TokenRefusal, TokenRefusedError, TokenVerifier, is_token

from agentserving_controlplane.errors import InvalidError, NotAllowedError, UnauthenticatedError

_URIS, _TENANT_CLAIM = "peer_uri", "x-agentserving-tenant"
# Keys in use at a time; the text of valid ones only is remembered, in memory.
MAX_VERIFIED = 20_000


class Admitted(NamedTuple):
    """Who calls, for which tenant, and until when its credential is valid, if a JWT (Unix time; 0 = see its key)."""

    caller: Caller
    tenant: Tenant
    until_unix_s: float = 0.0


# None: this control plane does not authenticate callers.
_ADMITTED: ContextVar[Admitted | None] = ContextVar("admitted", default=None)

admitted = _ADMITTED.get
set_admitted = _ADMITTED.set

# What a servicer has refused to the caller of the RPC of this task, for the audit log.
_REFUSAL: ContextVar[NotAllowedError | None] = ContextVar("refusal", default=None)

noted_refusal = _REFUSAL.get
note_refusal = _REFUSAL.set


def current_caller() -> Caller | None:
    """Who makes the RPC of this task; None when this control plane does not authenticate callers."""
    known = admitted()
    return known.caller if known is not None else None


def service_limit() -> ServiceClass:
    """The best class of service that the key of the caller of this task's RPC may use; UNSPECIFIED = any."""
    caller = current_caller()
    return caller.service_class if caller is not None else ServiceClass.UNSPECIFIED


Metadata = Sequence[tuple[str, str | bytes]]

# Tenants are part of store keys, next to a NUL.
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
DEFAULT_TENANT = Tenant("default")


def check_tenant(tenant: str) -> Tenant:
    """InvalidError for text that cannot name a tenant."""
    if _TENANT.fullmatch(tenant) is None:
        raise InvalidError("BAD_TENANT", "tenant: 1 to 64 of A-Z a-z 0-9 . _ -", field="tenant")
    return Tenant(tenant)


def claimed_tenant(caller: Caller | None, metadata: Metadata) -> Tenant:
    """The tenant that a caller may act for: clients for their own, others for the one in the metadata. DomainError."""
    claimed = next((str(value) for key, value in metadata if key == _TENANT_CLAIM and value), "")
    if caller is None or caller.role is not Role.CLIENT:
        return check_tenant(claimed) if claimed else DEFAULT_TENANT
    if claimed and claimed != caller.tenant:
        raise NotAllowedError(
            "FOREIGN_TENANT", f"x-agentserving-tenant: this key belongs to tenant {caller.tenant!r}", field="tenant"
        )
    return caller.tenant


class Authenticator:
    """Identifies callers on one port."""

    def __init__(
        self, keys: KeySet, *, has_certificates: bool, cluster: str = "", tokens: TokenVerifier | None = None
    ) -> None:
        """`has_certificates`: peers present some, which must name the cluster <namespace>/<name>, if it is given.
        `tokens`: clients may have JWTs."""
        self._keys, self._has_certificates, self._cluster = keys, has_certificates, cluster
        self._tokens = tokens
        # What was found for values of `authorization`. Verifying a key again costs more than the rest of the guard.
        self._verified: dict[str, tuple[KeyRow, Admitted]] = {}

    def admit(self, context: Any, metadata: Metadata, now_unix_s: float) -> Admitted:
        """The caller of an RPC with this metadata, and the tenant it acts for. DomainError."""
        if self._has_certificates:
            identity = self._identity(context)
            if identity is not None:
                caller = identity.caller()
                return Admitted(caller, claimed_tenant(caller, metadata))
        value, claims = "", False
        for name, each in metadata:
            if name == "authorization" and isinstance(each, str):
                value = each
            elif name == _TENANT_CLAIM:
                claims = True
        found = self._by_token(value, now_unix_s) or self._by_key(value, now_unix_s)
        if not claims:
            return found
        # If the claim is refused, the audit log says whose it was.
        set_admitted(found)
        return found._replace(tenant=claimed_tenant(found.caller, metadata))

    def _by_token(self, value: str, now_unix_s: float) -> Admitted | None:
        """The bearer of a JWT; None for credentials of another form."""
        if self._tokens is None or not is_token(text := from_authorization(value)):
            return None
        try:
            found = self._tokens.verify(text, now_unix_s)
        except TokenRefusedError as error:
            raise UnauthenticatedError(error.reason.value, str(error), credential=error.credential) from None
        caller = Caller(role=Role.CLIENT, tenant=found.tenant, credential=found.credential)
        return Admitted(caller, found.tenant, found.until_unix_s)

    def _by_key(self, value: str, now_unix_s: float) -> Admitted:
        known = self._verified.get(value)
        if known is not None:
            row = known[0]
            # The same object: a key that is revoked or removed has another row, or none.
            if self._keys.get(row.key_id) is row and row.refusal(now_unix_s) is None:
                return known[1]
            del self._verified[value]
        try:
            row = self._keys.verify(from_authorization(value), now_unix_s)
        except KeyRefusedError as error:
            raise refused(error) from None
        caller = row.caller()
        found = Admitted(caller, claimed_tenant(caller, ()))
        if len(self._verified) >= MAX_VERIFIED:
            self._verified.clear()
        self._verified[value] = (row, found)
        return found

    def _identity(self, context: Any) -> Identity | None:
        uris = context.auth_context().get(_URIS, ())
        if len(uris) != 1:
            return None
        identity = Identity.of_uri(uris[0].decode("utf-8", "replace"))
        if identity is None or (self._cluster and f"{identity.namespace}/{identity.cluster}" != self._cluster):
            raise UnauthenticatedError(
                "FOREIGN_CERTIFICATE", "the URI in this certificate is not an identity of this cluster"
            )
        return identity


def refused(error: KeyRefusedError) -> UnauthenticatedError:
    """The refusal of a key as a status."""
    return UnauthenticatedError(error.reason.value, str(error), credential=error.key_id)


def revoked(key_id: str, reason: KeyRefusal) -> UnauthenticatedError:
    """Why an open stream ends when its key does."""
    return refused(KeyRefusedError(reason, key_id))


def expired(credential: str) -> UnauthenticatedError:
    """Why an open stream ends when its JWT does."""
    message = "the JWT of this stream has expired: open it again with a new one"
    return UnauthenticatedError(TokenRefusal.TOKEN_EXPIRED.value, message, credential=credential)


def unsigned(credential: str) -> UnauthenticatedError:
    """Why an open stream ends when its JWT's key is withdrawn."""
    message = "the key that signed the JWT of this stream is no longer its issuer's: open it again with a new JWT"
    return UnauthenticatedError(TokenRefusal.UNKNOWN_SIGNING_KEY.value, message, credential=credential)


def peer_host(context: Any) -> str:
    """IP address of the peer, from gRPC's `ipv4:10.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; empty for other transports."""
    kind, _, rest = str(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host = unquote(rest).rpartition(":")[0].strip("[]")
    # A zone belongs to the link, not to the address.
    return host.partition("%")[0].removeprefix("::ffff:")
