"""The Store port on etcd.

The writer's lease is the key `<prefix>/leader` (lease.py): its create revision is the epoch, and each commit compares
it. A commit whose answer was lost is simply repeated: the guard still holds or it does not, and values are absolute,
so landing twice is the same as landing once. An etcd without space is compacted and defragmented where possible
(space.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentserving.transport.connection import Tls

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.client import EtcdClient
from agentserving_controlplane.store.etcd.lease import WriterLease
from agentserving_controlplane.store.etcd.space import QUOTA_BYTES, Space, prefix_end
from agentserving_controlplane.store.port import (
    FencedError,
    Snapshot,
    StoreFullError,
    Write,
    check_batch,
    ignore_holder,
)

COMMIT_TIMEOUT_S = 5.0
LEASE_S = 5


class EtcdStore:
    """Keys are stored under `<prefix>/d/`. `endpoints`: host:port of members, best of all.

    `quota_bytes`: of an etcd that does not say what its quota is (before 3.6).
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        prefix: str,
        tls: Tls | None = None,
        lease_s: int = LEASE_S,
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        self.endpoints, self.prefix = tuple(endpoints), prefix
        self._client = EtcdClient(self.endpoints, tls)
        self._data = f"{prefix}/d/".encode()
        self._leader = f"{prefix}/leader".encode()
        self._lease = WriterLease(self._client, self._leader, lease_s)
        self._space = Space(self._client, f"{prefix}/".encode(), quota_bytes)
        self._epoch = 0

    async def acquire(self, owner: str, on_holder: Callable[[str], None] = ignore_holder) -> int:
        """See Store."""
        try:
            self._epoch = await self._lease.acquire(owner, on_holder)
        except StoreFullError as error:
            raise await self._reclaimed(error) from error
        return self._epoch

    def holds(self, epoch: int) -> bool:
        """See Store."""
        return epoch == self._epoch and self._lease.valid

    async def keep_lease(self) -> None:
        """See Store."""
        await self._lease.keep()

    async def resign(self, timeout_s: float = 2.0) -> None:
        """See Store."""
        await self._lease.release(timeout_s)

    async def load(self, prefix: str = "") -> Snapshot:
        """See Store."""
        start = self._data + prefix.encode()
        revision, pairs = await self._client.load(start, prefix_end(start))
        return Snapshot(revision, {pair.key[len(self._data) :].decode(): pair.value for pair in pairs})

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        """See Store."""
        check_batch(writes)
        guard = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=self._leader, create_revision=epoch)
        request = pb.TxnRequest(compare=[guard], success=[self._operation(write) for write in writes])
        try:
            response = await self._client.txn(request, COMMIT_TIMEOUT_S)
        except StoreFullError as error:
            raise await self._reclaimed(error) from error
        if not response.succeeded:
            raise FencedError(f"epoch {epoch} is over: {self._leader.decode()} was deleted or belongs to another")
        return response.header.revision

    async def tend(self) -> float:
        """See Store."""
        return await self._space.tend()

    async def _reclaimed(self, error: StoreFullError) -> StoreFullError:
        return StoreFullError(f"{error}; {await self._space.reclaim()}")

    def _operation(self, write: Write) -> pb.RequestOp:
        key = self._data + write.key.encode()
        if write.value is None:
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=write.value))

    async def close(self) -> None:
        """See Store."""
        await self._client.close()
