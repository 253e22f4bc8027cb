"""The writer's lease on etcd: the key `<prefix>/leader`, bound to an etcd lease. Its create revision is the epoch.

A candidate creates the key if it is absent; otherwise it waits until the key is deleted, by its holder or with a lease
that the holder did not renew. The holder counts the lease from before its request, etcd from after it, so by the
holder's clock the lease is over before another can begin. Independently of clocks, each commit compares the create
revision: a key that was deleted and created again has another one.

A holder with the candidate's own name is its crashed predecessor, since it listens on the same address. Its lease is
revoked instead of waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.client import EtcdClient
from agentserving_controlplane.store.etcd.errors import LeaseNotFoundError
from agentserving_controlplane.store.etcd.watch import until_deleted
from agentserving_controlplane.store.port import FencedError, StoreError, StoreUnavailableError

log = structlog.get_logger()

REQUEST_S = 5.0
# The lease is renewed this many times within its time; a failed attempt is repeated at this interval.
RENEWALS, RETRY_S = 3, 0.2


class WriterLease:
    """One candidate's. `ttl_s`: seconds after which an unrenewed lease expires; etcd's minimum is 2."""

    def __init__(self, client: EtcdClient, key: bytes, ttl_s: int) -> None:
        self._client, self._key, self._ttl_s = client, key, ttl_s
        self._lease_id = 0
        self._valid_until_s = 0.0

    @property
    def valid(self) -> bool:
        """False once another may hold it."""
        return time.monotonic() < self._valid_until_s

    async def acquire(self, owner: str, on_holder: Callable[[str], None]) -> int:
        """Waits until the lease is ours; returns the epoch. See Store.acquire."""
        name = owner.encode()
        while True:
            revision, holder = await self._find_holder()
            if holder is None:
                epoch = await self._create(name)
                if epoch:
                    return epoch
            elif not holder.lease:
                # Written by a version without leases. Deleting it fences that one, as a leader of its version would.
                await self._delete(holder)
            elif holder.value == name:
                log.info("taking over the lease of the crashed predecessor", owner=owner)
                await self._client.revoke(holder.lease, REQUEST_S)
            else:
                on_holder(_text(holder.value))
                await until_deleted(self._client, self._key, revision, lambda value: on_holder(_text(value)))

    async def _find_holder(self) -> tuple[int, pb.KeyValue | None]:
        """(revision, the key if there is one). The read is linearizable, etcd's default."""
        response = await self._client.call("Range", pb.RangeRequest(key=self._key), REQUEST_S)
        return response.header.revision, response.kvs[0] if response.kvs else None

    async def _create(self, name: bytes) -> int:
        """The create revision; 0 when another candidate was faster."""
        began = time.monotonic()
        lease = await self._client.grant(self._ttl_s, REQUEST_S)
        absent = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=self._key, create_revision=0)
        put = pb.RequestOp(request_put=pb.PutRequest(key=self._key, value=name, lease=lease.ID))
        look = pb.RequestOp(request_range=pb.RangeRequest(key=self._key))
        try:
            response = await self._client.txn(pb.TxnRequest(compare=[absent], success=[put], failure=[look]), REQUEST_S)
        except LeaseNotFoundError:
            # Granted, and expired before etcd took the key: it was away in between.
            return 0
        epoch = response.header.revision
        if not response.succeeded:
            # It is ours nevertheless when only the response of an earlier attempt was lost.
            found = [pair for pair in response.responses[0].response_range.kvs if pair.lease == lease.ID]
            if not found:
                await self._client.revoke(lease.ID, REQUEST_S)
                return 0
            epoch = found[0].create_revision
        self._lease_id, self._valid_until_s = lease.ID, began + min(lease.TTL, self._ttl_s)
        return epoch

    async def _delete(self, holder: pb.KeyValue) -> None:
        same = pb.Compare(
            result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=self._key, mod_revision=holder.mod_revision
        )
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self._key))
        await self._client.txn(pb.TxnRequest(compare=[same], success=[delete]), REQUEST_S)

    async def keep(self) -> None:
        """Renews it until it is lost: FencedError."""
        while True:
            await asyncio.sleep(self._ttl_s / RENEWALS)
            await self._renew()

    async def _renew(self) -> None:
        reason = "no answer"
        try:
            async with asyncio.timeout(self._valid_until_s - time.monotonic()):
                while True:
                    began = time.monotonic()
                    try:
                        left_s = await self._client.keep_alive(self._lease_id, self._ttl_s)
                    except StoreUnavailableError as error:
                        reason = str(error)
                        await asyncio.sleep(RETRY_S)
                        continue
                    break
        except TimeoutError:
            self._valid_until_s = 0.0
            raise FencedError(f"the lease of {self._ttl_s} s could not be renewed: {reason}") from None
        if left_s <= 0:
            self._valid_until_s = 0.0
            raise FencedError(f"the lease of {self._ttl_s} s has expired")
        self._valid_until_s = began + min(left_s, self._ttl_s)

    async def release(self, timeout_s: float) -> None:
        """Ends it, so that the next candidate need not wait. Best effort: it expires by itself."""
        self._valid_until_s = 0.0
        lease_id, self._lease_id = self._lease_id, 0
        if lease_id:
            try:
                await self._client.revoke(lease_id, timeout_s)
            except StoreError as error:
                log.warning("the lease could not be released, it will expire", error=str(error))


def _text(value: bytes) -> str:
    """A holder's name as another version, or another program, may have written it."""
    return value.decode(errors="replace")
