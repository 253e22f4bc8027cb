"""Free ports of this machine.

A port that the kernel gives for port 0 lies in the range from which it also serves outgoing connections: between the
choice and the server's `listen`, any connection of the machine may take it, and on a busy machine one does. Ports
below that range are taken by servers only.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# Where IANA's registered ports are few, up to Linux's default lower bound of the range for outgoing connections.
LOWEST, HIGHEST = 20_000, 32_767
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1; all are bound at the same time, so that they differ. OSError when there are too few."""
    with ExitStack() as bound:
        candidates = _candidates()
        return [_bind(bound, candidates) for _ in range(count)]


def port_is_free(port: int) -> bool:
    """True when a server could listen on it. A port in TIME_WAIT is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _bind(bound: ExitStack, candidates: Iterator[int]) -> int:
    for port in candidates:
        probe = bound.enter_context(socket.socket())
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return int(probe.getsockname()[1])
    raise OSError(f"no free port between {LOWEST} and {HIGHEST} on 127.0.0.1")


def _candidates() -> Iterator[int]:
    """Ports in random order, so that two processes that choose at the same time rarely choose the same."""
    highest = min(HIGHEST, _lowest_outgoing() - 1)
    if highest < LOWEST:
        # An unusual range: the kernel's choice is as good as any.
        while True:
            yield 0
    yield from random.sample(range(LOWEST, highest + 1), highest - LOWEST + 1)


def _lowest_outgoing() -> int:
    try:
        return int(_OUTGOING.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return HIGHEST + 1
