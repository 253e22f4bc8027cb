"""Waiting until an engine that takes no new programs has nothing left to do."""

from __future__ import annotations

import asyncio
import ipaddress

import structlog

from agentserving_sidecar.sidecar import Sidecar

log = structlog.get_logger()

POLL_S = 0.05


async def drained(sidecar: Sidecar, limit_s: float) -> bool:
    """Waits until the engine runs nothing and every report is acknowledged; False when the limit came first."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while not sidecar.is_drained:
        if loop.time() >= deadline:
            log.warning("drain ended by its time limit", unacknowledged=len(sidecar.journal.unacked))
            return False
        await asyncio.sleep(POLL_S)
    return True


def may_drain(remote: str | None) -> bool:
    """True for callers in the engine's network namespace: its preStop hook. Probes and metrics are open to others."""
    try:
        return remote is not None and ipaddress.ip_address(remote).is_loopback
    except ValueError:
        return False
