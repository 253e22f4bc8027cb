"""Leader election among several operators by a Lease, as Kubernetes' own controllers do it.

The election is the client library's. A leader that cannot renew its Lease within RENEW_S stops, five seconds before
another one may start; its process ends, so that it keeps no outdated state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import structlog
from kubernetes.aio import client
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

log = structlog.get_logger()

# client-go's defaults for controllers.
LEASE_S, RENEW_S, RETRY_S = 15, 10, 2


class LostLeaseError(Exception):
    """Another operator may lead now."""


class _Lock(LeaseLock):
    """Handles an API server that does not respond: the library handles refusals only, and would end."""

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            return await super().get(name, namespace)
        except (aiohttp.ClientError, TimeoutError) as error:
            return False, client.ApiException(reason=f"no response: {error}")

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """The chart creates the Lease, so the operator needs no right to create any."""
        log.error("the Lease does not exist; the chart creates it", lease=f"{namespace}/{name}")
        return False

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        try:
            return await super().update(name, namespace, updated_record)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("the Lease could not be renewed", error=str(error))
            return False

    async def release(self) -> None:
        """Lets the next operator lead immediately instead of after LEASE_S."""
        if self.lease_reference is not None and self.lease_reference.spec is not None:
            self.lease_reference.spec.holder_identity = None
            await self.api_instance.replace_namespaced_lease(self.name, self.namespace, self.lease_reference)


async def lead(api: client.ApiClient, lease: str, identity: str, work: Callable[[], Awaitable[None]]) -> None:
    """Waits for the Lease ("namespace/name"), then runs `work` to its end.

    Raises LostLeaseError when the Lease is lost meanwhile, and what `work` raises.
    """
    namespace, _, name = lease.partition("/")
    lock = _Lock(name, namespace, identity, api)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def leading() -> None:
        log.info("leading", lease=lease)
        try:
            await work()
        except asyncio.CancelledError:
            ended.set_exception(LostLeaseError(f"the Lease {lease} was not renewed for {RENEW_S} s"))
        except Exception as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    election = LeaderElection(Config(lock, LEASE_S, RENEW_S, RETRY_S, leading, onstopped_leading=None))  # type: ignore[arg-type]
    running = asyncio.create_task(election.run())
    log.info("standing by", lease=lease, identity=identity)
    try:
        await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
        if running.done() and not running.cancelled() and (error := running.exception()) is not None:
            # The election itself failed, so `work` is not running or is about to be cancelled.
            raise error
        # When the election ended regularly, it is cancelling `work`.
        await ended
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await lock.release()
