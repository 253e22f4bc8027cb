"""The Store port on etcd.

The writer's claim is the key ``<prefix>/leader`` (etcd_claim.py): its create revision is the epoch, and each commit
compares it. A commit whose answer was lost is simply made again: the guard still holds or it does not, and the values
are absolute, so landing twice is landing once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from agentserving.transport.connection import Tls

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.claim import Claim
from agentserving_controlplane.store.etcd.client import EtcdClient
from agentserving_controlplane.store.port import Change, FencedError, Snapshot, Write

COMMIT_TIMEOUT_S = 5.0
LEASE_S = 5


class EtcdStore:
    """Keys live under ``<prefix>/d/``."""

    def __init__(
        self,
        endpoints: tuple[str, ...],
        prefix: str,
        tls: Tls | None = None,
        lease_s: int = LEASE_S,
    ) -> None:
        self.endpoints, self.prefix = endpoints, prefix
        self._client = EtcdClient(endpoints, tls)
        self._data = f"{prefix}/d/".encode()
        self._leader = f"{prefix}/leader".encode()
        self._claim = Claim(self._client, self._leader, lease_s)
        self._epoch = 0

    async def acquire(self, owner: str, told: Callable[[str], None] = lambda holder: None) -> int:
        """See Store."""
        self._epoch = await self._claim.take(owner, told)
        return self._epoch

    def holds(self, epoch: int) -> bool:
        """See Store."""
        return epoch == self._epoch and self._claim.valid

    async def hold(self) -> None:
        """See Store."""
        await self._claim.keep()

    async def resign(self, timeout_s: float = 2.0) -> None:
        """See Store."""
        await self._claim.give_up(timeout_s)

    async def load(self, prefix: str = "") -> Snapshot:
        """See Store."""
        start = self._data + prefix.encode()
        revision, pairs = await self._client.load(start, _prefix_end(start))
        return Snapshot(revision, {pair.key[len(self._data) :].decode(): pair.value for pair in pairs})

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        """See Store."""
        guard = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=self._leader, create_revision=epoch)
        response = await self._client.txn(
            pb.TxnRequest(compare=[guard], success=[self._operation(write) for write in writes]), COMMIT_TIMEOUT_S
        )
        if not response.succeeded:
            raise FencedError(f"epoch {epoch} is over: {self._leader.decode()} is another's, or nobody's")
        return response.header.revision

    def _operation(self, write: Write) -> pb.RequestOp:
        key = self._data + write.key.encode()
        if write.value is None:
            return pb.RequestOp(delete_range=pb.DeleteRangeRequest(key=key))
        return pb.RequestOp(put=pb.PutRequest(key=key, value=write.value))

    async def watch(self, after_revision: int, prefix: str = "") -> AsyncIterator[Change]:
        """See Store."""
        start = self._data + prefix.encode()
        async for revision, events in self._client.watch(start, _prefix_end(start), after_revision):
            writes = tuple(
                Write(
                    event.kv.key[len(self._data) :].decode(),
                    None if event.type == pb.Event.DELETE else event.kv.value,
                )
                for event in events
            )
            yield Change(revision, writes)

    async def close(self) -> None:
        """See Store."""
        await self._client.close()


def _prefix_end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])
