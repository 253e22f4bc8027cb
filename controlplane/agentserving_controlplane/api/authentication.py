"""Who a caller is: the URI in its certificate, or else the key in its metadata. And what servicers need of it.

A connection to the port of the parts has a certificate, whose URI names a role. Certificates without one say nothing;
a key is then needed, as on the clients' port and without TLS. What was verified travels in a context variable: each RPC
has a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from agentserving.contract.identity import Caller, Identity
from agentserving.contract.ids import Tenant
from agentserving.contract.keys import KeyRefusal, KeyRefusedError, KeyRow, from_authorization

from agentserving_controlplane.errors import UnauthenticatedError

_URIS = "peer_uri"


class Admitted(NamedTuple):
    """Who calls, and for which tenant."""

    caller: Caller
    tenant: Tenant


# None: this control plane authenticates nobody.
_ADMITTED: ContextVar[Admitted | None] = ContextVar("admitted", default=None)

admitted = _ADMITTED.get
set_admitted = _ADMITTED.set


def current_caller() -> Caller | None:
    """Who makes the RPC of this task; None when this control plane authenticates nobody."""
    known = admitted()
    return known.caller if known is not None else None


Metadata = Sequence[tuple[str, str | bytes]]

# (text of a key, Unix seconds) -> its row; raises KeyRefusedError.
VerifyKey = Callable[[str, float], KeyRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticator:
    """Identifies callers on one port. `has_certificates`: its peers present some."""

    verify_key: VerifyKey
    has_certificates: bool
    # <namespace>/<cluster> that certificates must name; empty = every certificate of the CA is of this cluster.
    cluster: str = ""

    def caller(self, context: Any, metadata: Metadata, now_unix_s: float) -> Caller:
        """The caller of an RPC with this metadata. UnauthenticatedError."""
        if self.has_certificates:
            identity = self._identity(context)
            if identity is not None:
                return identity.caller()
        try:
            return self.verify_key(key_of(metadata), now_unix_s).caller()
        except KeyRefusedError as error:
            raise refused(error) from None

    def _identity(self, context: Any) -> Identity | None:
        uris = context.auth_context().get(_URIS, ())
        if len(uris) != 1:
            return None
        identity = Identity.of_uri(uris[0].decode("utf-8", "replace"))
        if identity is None or (self.cluster and f"{identity.namespace}/{identity.cluster}" != self.cluster):
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


def key_of(metadata: Metadata) -> str:
    """The key in an RPC's metadata; empty without one."""
    for name, value in metadata:
        if name == "authorization" and isinstance(value, str):
            return from_authorization(value)
    return ""


def peer_host(context: Any) -> str:
    """IP address of the peer, from gRPC's `ipv4:10.0.0.1:4711` or `ipv6:%5B::1%5D:4711`; empty for other transports."""
    kind, _, rest = str(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host = unquote(rest).rpartition(":")[0].strip("[]")
    # A zone belongs to the link, not to the address.
    return host.partition("%")[0].removeprefix("::ffff:")
