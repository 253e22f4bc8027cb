"""The Store port on etcd.

The writer's claim is the key ``<prefix>/leader``: its mod_revision is the epoch, and each commit compares it. A commit
whose answer was lost is simply made again: the guard still holds or it does not, and the values are absolute, so
landing twice is landing once. Taking the claim twice after a lost answer only skips an epoch.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence

import grpc

from agentserving_controlplane.etcd import wire_pb2 as pb
from agentserving_controlplane.etcd.client import EtcdClient
from agentserving_controlplane.store import Change, FencedError, Snapshot, Write

COMMIT_TIMEOUT_S = 5.0


class EtcdStore:
    """Keys live under ``<prefix>/d/``."""

    def __init__(
        self, endpoints: tuple[str, ...], prefix: str, credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self._client = EtcdClient(endpoints, credentials)
        self._data = f"{prefix}/d/".encode()
        self._leader = f"{prefix}/leader".encode()

    async def acquire(self, owner: str) -> int:
        """See Store."""
        mine = f"{owner} {uuid.uuid4().hex}".encode()
        put = pb.RequestOp(put=pb.PutRequest(key=self._leader, value=mine))
        response = await self._client.txn(pb.TxnRequest(success=[put]), COMMIT_TIMEOUT_S)
        return response.header.revision

    async def load(self, prefix: str = "") -> Snapshot:
        """See Store."""
        start = self._data + prefix.encode()
        revision, pairs = await self._client.load(start, _prefix_end(start))
        return Snapshot(revision, {pair.key[len(self._data) :].decode(): pair.value for pair in pairs})

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        """See Store."""
        guard = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=self._leader, mod_revision=epoch)
        response = await self._client.txn(
            pb.TxnRequest(compare=[guard], success=[self._operation(write) for write in writes]), COMMIT_TIMEOUT_S
        )
        if not response.succeeded:
            raise FencedError(f"epoch {epoch} has been superseded: another control plane holds {self._leader.decode()}")
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
