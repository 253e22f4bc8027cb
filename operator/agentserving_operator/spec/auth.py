"""Who may use a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agentserving_operator.spec.fields import choice


class ClientAuth(StrEnum):
    """What clients must present."""

    KEYS = "Keys"
    NONE = "None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """What clients must present. The cluster's own parts have certificates (spec.tls)."""

    clients: ClientAuth | None = choice(
        "Keys: every call and every RPC of a client needs a key, which belongs to a tenant, and engines refuse calls "
        "without a ticket; needs spec.tls. None: anyone who reaches a port is served as any tenant. Absent: Keys for a "
        "new cluster, None without TLS; what is in force stays (status.clientAuth), so a cluster from before keys "
        "existed stays without.",
        default=None,
    )


def in_force(given: ClientAuth | None, tls_on: bool, status: Mapping[str, Any]) -> ClientAuth:
    """What clients must present, from the spec and the cluster's last status.

    The API server would fill in a default of the CRD for stored objects as well, and so change clusters that serve
    clients without keys. A status with a URL and without `clientAuth` was written by an operator from before keys.
    """
    if given is not None:
        return given
    if not tls_on:
        return ClientAuth.NONE
    before = status.get("clientAuth") or (ClientAuth.NONE if status.get("url") else ClientAuth.KEYS)
    return ClientAuth(before)
