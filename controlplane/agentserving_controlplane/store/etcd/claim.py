"""The writer's claim on etcd: the key ``<prefix>/leader``, bound to a lease. Its create revision is the epoch.

A candidate creates the key where there is none, else waits until it is deleted: by its owner, or with the lease that
the owner could not renew. The owner counts its lease from before it asked for it and etcd from after, so by its own
clock the claim is over before anybody else's can begin. Whatever the clocks say, a commit compares the create revision:
a key that was deleted and made again, by whomever, has another one.

An owner that finds the key under its own name has found its predecessor: it listens where that one did, so that one is
dead. It ends that lease instead of waiting for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.client import EtcdClient
from agentserving_controlplane.store.port import CompactedError, FencedError, StoreUnavailableError

log = structlog.get_logger()

ASK_S = 5.0
# Renewed this many times within a lease; an attempt that fails is repeated at this interval.
RENEWALS, RETRY_S = 3, 0.2


class Claim:
    """One candidate's. `lease_s`: seconds without word of the owner after which the claim ends; etcd's least is 2."""

    def __init__(self, client: EtcdClient, key: bytes, lease_s: int) -> None:
        self._client, self._key, self._lease_s = client, key, lease_s
        self._lease = 0
        self._valid_until_s = 0.0

    @property
    def valid(self) -> bool:
        """False once it may be another's."""
        return time.monotonic() < self._valid_until_s

    async def take(self, owner: str, told: Callable[[str], None]) -> int:
        """Waits until it is ours; gives the epoch. See Store.acquire."""
        mine = owner.encode()
        while True:
            revision, holder = await self._look()
            if holder is None:
                epoch = await self._create(mine)
                if epoch:
                    return epoch
            elif not holder.lease:
                # Of a version that had no leases. It is fenced by this, as it would be by another of its own version.
                await self._delete(holder)
            elif holder.value == mine:
                log.info("taking the claim of our predecessor", owner=owner)
                await self._client.revoke(holder.lease, ASK_S)
            else:
                told(holder.value.decode())
                await self._until_free(revision, told)

    async def _look(self) -> tuple[int, pb.KeyValue | None]:
        request = pb.TxnRequest(success=[pb.RequestOp(range=pb.RangeRequest(key=self._key))])
        response = await self._client.txn(request, ASK_S)
        found = response.responses[0].range.kvs
        return response.header.revision, found[0] if found else None

    async def _create(self, mine: bytes) -> int:
        """The create revision; 0 when another was faster."""
        began = time.monotonic()
        lease = await self._client.grant(self._lease_s, ASK_S)
        absent = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=self._key, create_revision=0)
        put = pb.RequestOp(put=pb.PutRequest(key=self._key, value=mine, lease=lease.id))
        look = pb.RequestOp(range=pb.RangeRequest(key=self._key))
        response = await self._client.txn(pb.TxnRequest(compare=[absent], success=[put], failure=[look]), ASK_S)
        epoch = response.header.revision
        if not response.succeeded:
            # Ours all the same when the answer to an earlier attempt was lost.
            found = [pair for pair in response.responses[0].range.kvs if pair.lease == lease.id]
            if not found:
                await self._client.revoke(lease.id, ASK_S)
                return 0
            epoch = found[0].create_revision
        self._lease, self._valid_until_s = lease.id, began + min(lease.ttl, self._lease_s)
        return epoch

    async def _delete(self, holder: pb.KeyValue) -> None:
        same = pb.Compare(
            result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=self._key, mod_revision=holder.mod_revision
        )
        delete = pb.RequestOp(delete_range=pb.DeleteRangeRequest(key=self._key))
        await self._client.txn(pb.TxnRequest(compare=[same], success=[delete]), ASK_S)

    async def _until_free(self, after_revision: int, told: Callable[[str], None]) -> None:
        try:
            async for _, events in self._client.watch(self._key, self._key + b"\0", after_revision):
                for event in events:
                    if event.type == pb.Event.DELETE:
                        return
                    told(event.kv.value.decode())
        except CompactedError:
            log.info("the history of the leader key was compacted, looking again")

    async def keep(self) -> None:
        """Renews for ever; FencedError when the claim is over."""
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            await self._renew()

    async def _renew(self) -> None:
        last = "no answer"
        try:
            async with asyncio.timeout(self._valid_until_s - time.monotonic()):
                while True:
                    began = time.monotonic()
                    try:
                        left_s = await self._client.keep_alive(self._lease, self._lease_s)
                    except StoreUnavailableError as error:
                        last = str(error)
                        await asyncio.sleep(RETRY_S)
                        continue
                    break
        except TimeoutError:
            self._valid_until_s = 0.0
            raise FencedError(f"the lease of {self._lease_s} s could not be renewed: {last}") from None
        if left_s <= 0:
            self._valid_until_s = 0.0
            raise FencedError(f"the lease of {self._lease_s} s has run out")
        self._valid_until_s = began + min(left_s, self._lease_s)

    async def give_up(self, timeout_s: float) -> None:
        """Ends it, so that the next candidate need not wait. Best effort: the lease runs out by itself."""
        self._valid_until_s = 0.0
        lease, self._lease = self._lease, 0
        if lease:
            try:
                await self._client.revoke(lease, timeout_s)
            except StoreUnavailableError as error:
                log.warning("the claim could not be given up, it runs out", error=str(error))
