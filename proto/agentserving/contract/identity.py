"""Who a caller is, and the URI that says so in a part's certificate. Pure; needs the standard library only.

Each part of a cluster has a certificate with exactly one URI in its subject alternative names, in the form of a SPIFFE
ID: `spiffe://agentserving/<namespace>/<cluster>/<role>[/<name>]`. Outside Kubernetes the namespace is `local`. Clients
have keys (keys.py), since people and CI jobs cannot be given certificates easily.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from agentserving.contract.ids import Tenant
from agentserving.contract.service_class import ServiceClass

TRUST_DOMAIN = "agentserving"
LOCAL_NAMESPACE = "local"
NO_TENANT = Tenant("")
_SCHEME = f"spiffe://{TRUST_DOMAIN}/"
# Names of Kubernetes objects, and engine ids.
_PART = re.compile(r"[A-Za-z0-9._-]{1,253}")


class Role(enum.StrEnum):
    """What a caller is. A closed enum: it is used as a metric label."""

    CONTROL_PLANE = "control-plane"
    GATEWAY = "gateway"
    ENGINE = "engine"
    SIDECAR = "sidecar"
    OPERATOR = "operator"
    ADMIN = "admin"
    CLIENT = "client"
    ANONYMOUS = "anonymous"


# Roles whose identity carries a name: the engine that they are or serve.
NAMED_ROLES = frozenset({Role.ENGINE, Role.SIDECAR})
_IN_CERTIFICATES = frozenset(Role) - {Role.CLIENT, Role.ANONYMOUS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The verified identity of a connection or of one RPC."""

    role: Role
    # Engine id, for engines and sidecars; "" = any engine (a token that all sidecars of one machine share).
    name: str = ""
    # For clients; empty otherwise.
    tenant: Tenant = NO_TENANT
    # Key id or certificate URI, for the audit log. Never a secret.
    credential: str = ""
    # The best class of service that a client's key may use; UNSPECIFIED = any.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED

    def __str__(self) -> str:
        return f"{self.role}/{self.name}" if self.name else str(self.role)


ANONYMOUS = Caller(role=Role.ANONYMOUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a certificate's URI says."""

    namespace: str
    cluster: str
    role: Role
    name: str = ""

    @property
    def uri(self) -> str:
        """The form in certificates. ValueError when a part cannot be in it."""
        named = self.role in NAMED_ROLES
        if self.role not in _IN_CERTIFICATES:
            raise ValueError(f"{self.role} is not the role of a certificate")
        if bool(self.name) != named:
            raise ValueError(f"{self.role}: {'needs a name' if named else 'has no name'}")
        parts = [self.namespace, self.cluster, self.role.value, *([self.name] if named else [])]
        for part in parts:
            if _PART.fullmatch(part) is None or part in (".", ".."):
                raise ValueError(f"{part!r} cannot be part of an identity: 1 to 253 of A-Z a-z 0-9 . _ -")
        return _SCHEME + "/".join(parts)

    @classmethod
    def of_uri(cls, uri: str) -> Identity | None:
        """What a URI says; None for a URI of another form."""
        if not uri.startswith(_SCHEME):
            return None
        parts = uri.removeprefix(_SCHEME).split("/")
        if len(parts) not in (3, 4) or parts[2] not in _IN_CERTIFICATES:
            return None
        identity = cls(namespace=parts[0], cluster=parts[1], role=Role(parts[2]), name="/".join(parts[3:]))
        try:
            return identity if identity.uri == uri else None
        except ValueError:
            return None

    def caller(self) -> Caller:
        """The caller whose certificate says this."""
        return Caller(role=self.role, name=self.name, credential=self.uri)
