"""Settings of the control plane; every flag has an environment variable AGENTSERVING_<FLAG>."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserving.contract.policy import DEFAULT, PRESETS
from agentserving.contract.ticket_keys import TicketKeys

from agentserving_controlplane.engines.load_balancer import Balancer

MIN_LEASE_S, MAX_LEASE_S = 2, 600


@dataclass(frozen=True, slots=True)
class Settings:
    """Durations in seconds."""

    listen: str
    http_port: int
    store: str
    etcd_endpoints: tuple[str, ...]
    etcd_prefix: str
    # The first signs.
    ticket_keys: Callable[[], Sequence[bytes]]
    policy: str
    balancer: Balancer
    tls_cert: str
    tls_key: str
    tls_ca: str
    # A program without calls for this long has been abandoned; six times that while it waits for a tool.
    program_idle_s: float
    # Engines speak of each call several times a minute: silence means that call and engine are gone.
    call_idle_s: float
    # How long a closed program can be asked about.
    closed_retention_s: float
    # Rows that may wait for a store that is away before new programs and calls are refused; a row is about a kilobyte.
    max_pending_writes: int = 50_000
    # TLS to etcd: CA, and a client certificate where etcd asks for one.
    etcd_tls_ca: str = ""
    etcd_tls_cert: str = ""
    etcd_tls_key: str = ""
    # Where probes and metrics are answered: a pod's are asked from outside.
    http_host: str = "127.0.0.1"
    # Where clients reach this one: followers name the leader so. And whose predecessor's claim may be taken at once.
    advertise: str = ""
    # Without word of the leader for this long another takes over; etcd's least is 2. The leader stops before.
    lease_s: int = 5


def _reachable(listen: str) -> str:
    """An address that others may try: a wildcard says nothing, so the host's name stands for it."""
    host, _, port = listen.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]", "") else listen


def _checked(parser: argparse.ArgumentParser, given: argparse.Namespace) -> TicketKeys:
    """The ticket's keys, once every value makes sense; else exits as argparse does."""
    try:
        keys = TicketKeys(Path(given.ticket_key_file))
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        parser.error(f"--ticket-key-file {given.ticket_key_file}: {told}")
    for name in ("program_idle_s", "call_idle_s", "closed_retention_s", "max_pending_writes"):
        if not getattr(given, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, not {getattr(given, name)}")
    if not MIN_LEASE_S <= given.lease_s <= MAX_LEASE_S:
        parser.error(f"--lease-s must be {MIN_LEASE_S} to {MAX_LEASE_S} seconds, not {given.lease_s}")
    return keys


def parse(argv: list[str]) -> Settings:
    """Settings from flags and environment. Exits with code 2 and one line when they make no sense."""
    parser = argparse.ArgumentParser(prog="agentserving-controlplane", description=__doc__)

    def flag(name: str, default: str | None = None, **kwargs: object) -> None:
        variable = "AGENTSERVING_" + name.upper().replace("-", "_")
        value = os.environ.get(variable, default)
        parser.add_argument(f"--{name}", default=value, required=value is None, **kwargs)  # type: ignore[arg-type]

    flag("listen", "127.0.0.1:7070")
    flag("http-host", "127.0.0.1")
    flag("http-port", "0", type=int)
    flag("store", "memory", choices=["memory", "etcd"])
    flag("etcd-endpoints", "127.0.0.1:2379")
    flag("etcd-prefix", "/agentserving/default")
    flag("ticket-key-file")
    flag("policy", DEFAULT.name, choices=sorted(PRESETS))
    flag("balancer", Balancer.PREFIX_AWARE.value, choices=[b.value for b in Balancer])
    for name in ("tls-cert", "tls-key", "tls-ca", "etcd-tls-ca", "etcd-tls-cert", "etcd-tls-key"):
        flag(name, "")
    flag("advertise", "")
    flag("lease-s", "5", type=int)
    flag("program-idle-s", "600", type=float)
    flag("call-idle-s", "120", type=float)
    flag("closed-retention-s", "600", type=float)
    flag("max-pending-writes", "50000", type=int)
    given = parser.parse_args(argv)
    keys = _checked(parser, given)
    return Settings(
        given.listen,
        given.http_port,
        given.store,
        tuple(given.etcd_endpoints.split(",")),
        given.etcd_prefix.rstrip("/"),
        keys,
        given.policy,
        Balancer(given.balancer),
        given.tls_cert,
        given.tls_key,
        given.tls_ca,
        given.program_idle_s,
        given.call_idle_s,
        given.closed_retention_s,
        given.max_pending_writes,
        given.etcd_tls_ca,
        given.etcd_tls_cert,
        given.etcd_tls_key,
        given.http_host,
        given.advertise or _reachable(given.listen),
        given.lease_s,
    )
