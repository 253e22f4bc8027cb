"""Which engine a sidecar may speak for, and where that engine may be. Pure.

Calls, with their prompts, are sent to the address in a hello. It must be that of the machine or pod from which the
sidecar connects, or one that the operator has allowed (--engine-hosts).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agentserving_controlplane.errors import NotAllowedError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """What the credential and the connection of a sidecar say."""

    # Engine id in the credential; "" = any (a token that the sidecars of one machine share).
    engine_id: str
    # IP address that the connection comes from.
    peer_host: str
    # IP ranges and names (`*.demo-engine.ns.svc`) where engines may be besides.
    hosts: Sequence[str] = ()

    def check(self, engine_id: str, **addresses: str) -> None:
        """NotAllowedError unless the sidecar may attach this engine at these addresses, host:port by field."""
        if self.engine_id and engine_id != self.engine_id:
            raise NotAllowedError(
                "NOT_ALLOWED",
                f"engine_id: this credential is of engine {self.engine_id!r}, not of {engine_id!r}",
                field="engine_id",
            )
        for field, address in addresses.items():
            host = host_of(address)
            if address and not self._allows(host):
                raise NotAllowedError(
                    "FOREIGN_ADDRESS",
                    f"{field}: {host!r} is neither where this sidecar connects from ({self.peer_host or 'unknown'})"
                    " nor among the control plane's --engine-hosts",
                    field=field,
                )

    def _allows(self, host: str) -> bool:
        ip, peer = _ip(host), _ip(self.peer_host)
        if ip is None:
            if host == "localhost":
                return peer is not None and peer.is_loopback
            return any(fnmatchcase(host, pattern) for pattern in self.hosts if _network(pattern) is None)
        if peer is not None and (ip == peer or (ip.is_loopback and peer.is_loopback)):
            return True
        networks = (network for pattern in self.hosts if (network := _network(pattern)) is not None)
        return any(ip in network for network in networks)


def host_of(address: str) -> str:
    """The host of host:port or [host]:port, without brackets."""
    return address.rpartition(":")[0].strip("[]").lower()


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(pattern: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return None
