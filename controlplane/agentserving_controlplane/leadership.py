"""From candidate to leader: acquire the store's lease, recover, open the gate, keep the lease.

A follower keeps no table, so it cannot serve stale data: reading 10,000 programs takes a fraction of the lease that has
to expire first (docs/results). A process leads once. When it loses the lease it restarts itself (`__main__`), so that
nothing of what it knew remains.

Every task here is supervised. Losing the lease passes through the supervisor as FencedError; any other failure of a
task ends the process, which gives the lease up on its way, so that another control plane leads without waiting for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import structlog
from agentserving_process.backoff import Backoff
from agentserving_process.probes import Answer
from agentserving_process.supervision import Supervisor

from agentserving_controlplane.api.conversion import policy_version_from_bytes
from agentserving_controlplane.api.gate import Gate
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.garbage import Collector
from agentserving_controlplane.settings import PlaneSettings, Settings
from agentserving_controlplane.store.port import CommitFailedError, FencedError, Store, StoreUnavailableError
from agentserving_controlplane.telemetry import wiring

log = structlog.get_logger()

UPKEEP_S = 5.0
STORE_RETRIES = Backoff(first_s=0.25, max_s=1.0)

OpenGate = Callable[[ControlPlane], Awaitable[None]]


class Leadership:
    """One process's. `lead` runs as a supervised task; `readiness` and `plane` are for probes and metrics."""

    def __init__(
        self, settings: Settings, store: Store, gate: Gate, open_gate: OpenGate, clients_gate: Gate | None = None
    ) -> None:
        """`clients_gate`: that of the clients' port, if they have one of their own."""
        self._settings, self._store, self._gate = settings, store, gate
        self._clients_gate = clients_gate or gate
        self._open_gate = open_gate
        self._recovering: ControlPlane | None = None
        self._waits_for = "starting"
        # The leader's state while this process leads.
        self.plane: ControlPlane | None = None

    def readiness(self) -> Answer:
        """Ready: this process leads, or knows the leader."""
        if self.plane is not None:
            return Answer(True, "ok: leading")
        if self._gate.leader:
            return Answer(True, f"ok: {self._gate.leader} leads")
        return Answer(False, f"not recovered: {self._waits_for}")

    async def lead(self, tasks: Supervisor) -> None:
        """Becomes the leader, however long that takes, and leaves the tasks of one with the supervisor."""
        epoch = await self._acquire()
        tasks.start("lease", self._store.keep_lease, passes=(FencedError,))
        fenced: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_fenced(error: Exception) -> None:
            if not fenced.done():
                fenced.set_exception(error)

        async def writing() -> None:
            """Fails with the reason why group commits have ended."""
            try:
                await fenced
            except CommitFailedError as error:
                raise RuntimeError(str(error)) from error

        tasks.start("group-commit", writing, passes=(FencedError,))
        plane = self._recovering = ControlPlane(
            self._settings.plane, self._store, epoch, on_fenced, self._settings.access
        )
        collector = Collector()
        await self._recover(plane)
        collector.freeze()
        await self._open_gate(plane)
        self.plane = plane
        tasks.start("upkeep", lambda: _upkeep(plane, collector))
        if (send_spans := wiring.sender(self._settings.telemetry, plane)) is not None:
            tasks.start("spans", send_spans)
        log.info("leading", listen=self._settings.serving.listen, epoch=plane.epoch, policy=plane.policy.policy.name)

    async def _acquire(self) -> int:
        """Waits for the store and for its lease; returns the epoch."""

        def on_holder(holder: str) -> None:
            # "<address> <host> [<address for clients>]"; versions without a clients' port gave the first two.
            address, _, clients_address = (*holder.split(" "), "", "")[:3]
            self._clients_gate.leader = clients_address
            self._gate.leader = address
            log.info("another control plane leads", leader=self._gate.leader)

        self._waits_for = "for the store"
        serving, failures = self._settings.serving, 0
        name = f"{serving.address} {socket.gethostname()} {serving.clients_address}".rstrip()
        while True:
            try:
                epoch = await self._store.acquire(name, on_holder)
                break
            except StoreUnavailableError as error:
                self._waits_for = f"waiting for the store: {error}"
                log.warning("store unavailable, trying again", error=str(error))
            failures += 1
            await asyncio.sleep(STORE_RETRIES.delay_s(failures))
        self._gate.leader = self._clients_gate.leader = ""
        self._waits_for = "reading the store"
        return epoch

    async def _recover(self, plane: ControlPlane) -> None:
        failures = 0
        while True:
            try:
                return await plane.recover(self._store, policy_version_from_bytes)
            except StoreUnavailableError as error:
                log.warning("store unavailable, reading it again", error=str(error))
            failures += 1
            await asyncio.sleep(STORE_RETRIES.delay_s(failures))

    async def resign(self) -> None:
        """Lands what was accepted, then gives the lease up: the next leader need not wait for it to expire."""
        if self._recovering is not None:
            await self._recovering.commits.close()
        await self._store.resign()

    async def lost(self, error: FencedError) -> None:
        """Stops writing: another control plane leads, or may. There is nothing to give up."""
        log.error("this control plane leads no longer", error=str(error))
        self.plane = None
        if self._recovering is not None:
            await self._recovering.commits.fence(error)


async def _upkeep(plane: ControlPlane, collector: Collector) -> None:
    interval_s = upkeep_interval_s(plane.settings)
    while True:
        await asyncio.sleep(interval_s)
        await plane.tick()
        collector.round()


def upkeep_interval_s(settings: PlaneSettings) -> float:
    """A quarter of the shortest limit that upkeep enforces, at most UPKEEP_S."""
    shortest = min(settings.program_idle_s, settings.call_idle_s, settings.closed_retention_s)
    return min(UPKEEP_S, shortest / 4)
