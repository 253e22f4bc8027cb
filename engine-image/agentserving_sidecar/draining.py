"""Waiting until an engine that takes no new programs has nothing left to do."""

from __future__ import annotations

import asyncio
import ipaddress

import structlog

from agentserving_sidecar.sidecar import Sidecar

log = structlog.get_logger()

LOOK_EVERY_S = 0.05


async def drained(sidecar: Sidecar, limit_s: float) -> bool:
    """Until the engine runs nothing and every report is acknowledged; False when the bound came first."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while asyncio.get_running_loop().time() < deadline:
        busy = sidecar.load is not None and sidecar.load.running + sidecar.load.waiting > 0 and sidecar.engine_present
        if not busy and not sidecar.journal.unacked:
            return True
        await asyncio.sleep(LOOK_EVERY_S)
    log.warning("drain ended by its bound", unacked=len(sidecar.journal.unacked))
    return False


def may_drain(remote: str | None) -> bool:
    """Only who shares the engine's network namespace: its preStop hook. Probes and metrics are asked from anywhere."""
    try:
        return remote is not None and ipaddress.ip_address(remote).is_loopback
    except ValueError:
        return False
