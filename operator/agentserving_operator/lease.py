"""Leader election among several operators by a Lease, as Kubernetes' own controllers do it (client-go, leaderelection).

The holder writes the time into the Lease every RETRY_S. A candidate takes the Lease when its holder has not written for
the Lease's duration by the candidate's own clock: clocks of machines are not compared. The API server refuses the
slower one of two candidates, because a write names the version of the Lease that was read.

A leader that cannot renew its Lease within RENEW_S stops, five seconds before another one may start, also while the API
server does not answer; its process ends, so that it keeps no outdated state.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog

from agentserving_operator.errors import ApiError, ConflictError
from agentserving_operator.manifests.common import Manifest

log = structlog.get_logger()

# client-go's defaults for controllers.
LEASE_S, RENEW_S, RETRY_S = 15, 10, 2


class LostLeaseError(Exception):
    """Another operator may lead now."""


class LeaseApi(Protocol):
    """What the election asks of the API server. Every method raises ApiError."""

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object; None when it does not exist."""

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replaces an object; MUST raise ConflictError when it was changed since it was read."""


class Candidate:
    """One operator in an election. All times are the event loop's."""

    def __init__(self, api: LeaseApi, lease: str, identity: str) -> None:
        self._api, self._lease, self._identity = api, lease, identity
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0
        self._renewed_at = 0.0

    async def attempt(self) -> str:
        """Takes the Lease if it is free, or renews it. Returns its holder; "" when that is unknown."""
        began = _now()
        try:
            live = await self._read()
            if live is None:
                return ""
            spec = live.get("spec") or {}
            holder = str(spec.get("holderIdentity") or "")
            if holder not in ("", self._identity) and not self._expired(spec):
                return holder
            await self._api.replace({**live, "spec": _held(spec, self._identity)})
        except ConflictError:
            # Another candidate was faster, or the Lease was edited.
            return ""
        except ApiError as error:
            log.warning("the Lease could not be read or written, will retry", lease=self._lease, error=str(error))
            return ""
        self._renewed_at = began
        return self._identity

    async def acquire(self) -> None:
        """Returns when it holds the Lease."""
        while True:
            # A response that took longer says what was true then: another candidate may have the Lease by now.
            if await self.attempt() == self._identity and _now() < self._renewed_at + RENEW_S:
                return
            await asyncio.sleep(RETRY_S)

    async def renew(self) -> None:
        """Returns when the Lease was not renewed for RENEW_S, or has another holder."""
        while True:
            try:
                async with asyncio.timeout_at(self._renewed_at + RENEW_S):
                    await asyncio.sleep(RETRY_S)
                    while (holder := await self.attempt()) != self._identity:
                        if holder:
                            return
                        await asyncio.sleep(RETRY_S)
            except TimeoutError:
                return

    async def release(self) -> None:
        """Lets the next operator lead immediately instead of after LEASE_S."""
        try:
            live = await self._read()
            if live is not None and live["spec"].get("holderIdentity") == self._identity:
                await self._api.replace({**live, "spec": {**live["spec"], "holderIdentity": None}})
        except ApiError as error:
            log.warning("the Lease could not be released", lease=self._lease, error=str(error))

    async def _read(self) -> Manifest | None:
        namespace, _, name = self._lease.partition("/")
        live = await self._api.get("Lease", namespace, name)
        if live is None:
            # The operator needs no right to create any.
            log.error("the Lease does not exist; the chart creates it", lease=self._lease)
        return live

    def _expired(self, spec: Manifest) -> bool:
        """Whether its holder has not renewed it for its duration, as far as this candidate has seen."""
        seen = (spec.get("holderIdentity"), spec.get("renewTime"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, _now()
        return _now() - self._seen_at >= (spec.get("leaseDurationSeconds") or LEASE_S)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _held(spec: Manifest, identity: str) -> Manifest:
    """The spec of a Lease that `identity` takes or renews."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    renewed = {**spec, "holderIdentity": identity, "leaseDurationSeconds": LEASE_S, "renewTime": now}
    if spec.get("holderIdentity") == identity:
        return renewed
    return {**renewed, "acquireTime": now, "leaseTransitions": (spec.get("leaseTransitions") or 0) + 1}


async def lead(api: LeaseApi, lease: str, identity: str, work: Callable[[], Awaitable[None]]) -> None:
    """Waits for the Lease ("namespace/name"), then runs `work` to its end.

    Raises LostLeaseError when the Lease is lost meanwhile, and what `work` raises.
    """
    candidate = Candidate(api, lease, identity)
    log.info("standing by", lease=lease, identity=identity)
    await candidate.acquire()
    log.info("leading", lease=lease)
    working, renewing = asyncio.ensure_future(work()), asyncio.create_task(candidate.renew())
    try:
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await renewing
            raise LostLeaseError(f"the Lease {lease} was not renewed for {RENEW_S} s, or another operator took it")
        await working
    finally:
        working.cancel()
        renewing.cancel()
        await asyncio.gather(working, renewing, return_exceptions=True)
    await candidate.release()
