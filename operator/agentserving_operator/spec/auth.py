"""Who may use a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agentserving_operator.spec.fields import choice


class ClientAuth(StrEnum):
    """What clients must present."""

    KEYS = "Keys"
    NONE = "None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """What clients must present. The cluster's own parts have certificates (spec.tls)."""

    clients: ClientAuth = choice(
        "Keys: every call and every RPC of a client needs a key, which belongs to a tenant; needs spec.tls. None: "
        "whoever reaches a port is served, as any tenant.",
        default=ClientAuth.NONE,
    )
