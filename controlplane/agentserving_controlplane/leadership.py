"""From candidate to leader and out again: campaign, recover, open the gate, hold the claim.

While another leads nothing of the table is kept here: reading 10 000 programs takes a fraction of the lease that has
to pass before (ARCHITECTURE has the figure), and what is not kept cannot be stale.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from agentserving_controlplane.api.gate import Gate
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.metrics import Readiness
from agentserving_controlplane.settings import Settings
from agentserving_controlplane.store.port import FencedError, Store, StoreUnavailableError

log = structlog.get_logger()
TICK_S, STORE_RETRY_S = 5.0, 0.5

OpenGate = Callable[[ControlPlane], Awaitable[None]]


async def first_end(*works: Coroutine[Any, Any, Any]) -> None:
    """Runs all until one ends; raises what that one raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Leadership:
    """One process's; `run` once, then `end`."""

    def __init__(self, settings: Settings, store: Store, gate: Gate, readiness: Readiness, open_gate: OpenGate) -> None:
        self._settings, self._store, self._gate, self._readiness = settings, store, gate, readiness
        self._open_gate = open_gate
        self._plane: ControlPlane | None = None
        self._lost: FencedError | None = None

    async def run(self, stop: asyncio.Event) -> bool:
        """Until `stop`, or until the claim is lost: then True."""
        try:
            await first_end(stop.wait(), self._lead())
        except FencedError as error:
            log.error("this control plane leads no more", error=str(error))
            self._lost = error
            self._readiness.plane = None
            if self._plane is not None:
                await self._plane.commits.fence(error)
        return self._lost is not None

    async def end(self) -> None:
        """What was taken in lands, and the next leader need not wait for the lease; when that is lost, nothing."""
        if self._plane is not None:
            await self._plane.commits.close()
        if self._lost is None:
            await self._store.resign()

    async def _lead(self) -> None:
        epoch = await self._campaign()
        fenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(error: Exception) -> None:
            if not fenced.done():
                fenced.set_exception(error)

        plane = ControlPlane(self._settings, self._store, epoch, tell)
        await first_end(self._store.keep_lease(), self._serve(plane), _result(fenced))

    async def _campaign(self) -> int:
        """Waits for the store and for its claim; gives the epoch."""
        readiness, settings = self._readiness, self._settings

        def told(holder: str) -> None:
            readiness.leader = self._gate.leader = holder.partition(" ")[0]
            log.info("another control plane leads", leader=readiness.leader)

        readiness.waiting = "for the store"
        while True:
            try:
                epoch = await self._store.acquire(f"{settings.advertise} {socket.gethostname()}", told)
                self._gate.leader = readiness.leader = ""
                readiness.waiting = "reading the store"
                return epoch
            except StoreUnavailableError as error:
                readiness.waiting = f"waiting for the store: {error}"
                log.warning("store away, trying again", error=str(error))
                await asyncio.sleep(STORE_RETRY_S)

    async def _serve(self, plane: ControlPlane) -> None:
        """For ever."""
        while True:
            try:
                await plane.recover(self._store)
                break
            except StoreUnavailableError as error:
                log.warning("store away, reading it again", error=str(error))
                await asyncio.sleep(STORE_RETRY_S)
        self._plane = plane
        await self._open_gate(plane)
        self._readiness.plane = plane
        log.info("leading", listen=self._settings.listen, epoch=plane.epoch, policy=plane.policy.policy.name)
        limits = plane.settings
        shortest = min(limits.program_idle_s, limits.call_idle_s, limits.closed_retention_s)
        while True:
            await asyncio.sleep(min(TICK_S, shortest / 4))
            await plane.tick()


async def _result(future: asyncio.Future[None]) -> None:
    await future
