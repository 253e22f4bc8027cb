"""Waiting until an engine that takes no new programs has nothing left to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from agentserving_process.audit import changed
from agentserving_process.listening import cannot_listen
from aiohttp import web

from agentserving_sidecar.sidecar import Sidecar

log = structlog.get_logger()

POLL_S = 0.05
# In the directory that the sidecar shares with its engine.
SOCKET_NAME = "drain.sock"


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


@asynccontextmanager
async def drain_socket(sidecar: Sidecar, directory: Path, limit_s: float) -> AsyncIterator[None]:
    """Serves GET /drain on a Unix socket while the block runs: the response comes once the engine is idle.

    Kubernetes ends a pod's containers before its native sidecars, so it is the engine's preStop hook that asks. It
    needs no other credential than the directory, which the engine and this process share. CannotStartError.
    """

    async def drain(_: web.Request) -> web.Response:
        sidecar.drain()
        changed(role="engine", method="Sidecar.Drain", about=f"engine/{sidecar.engine_id}")
        is_drained = await drained(sidecar, limit_s)
        return web.Response(text="drained\n" if is_drained else "the time limit came first\n")

    app, path = web.Application(), directory / SOCKET_NAME
    app.add_routes([web.get("/drain", drain)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            path.unlink(missing_ok=True)
            await web.UnixSite(runner, str(path)).start()
            path.chmod(0o660)
        except OSError as error:
            raise cannot_listen(str(path), error) from None
        yield
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)
