"""Calls to etcd over grpc.aio: one channel per endpoint, a deadline per attempt, the next endpoint on failure.

Every call carries `hasleader`: a member that is cut off from its peers then fails immediately instead of hanging or
serving stale data. Writes are only ever transactions under a guard, so repeating one is harmless (store.py says why).
Errors of etcd become those of the port in `errors.py`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any

import grpc
import structlog
from agentserving.transport.backoff import Backoff
from agentserving.transport.channels import Options, channel_async
from agentserving.transport.connection import Pem, Tls

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.errors import (
    CompactedError,
    EndpointError,
    LeaseNotFoundError,
    is_own_cancellation,
    translate,
)
from agentserving_controlplane.store.port import StoreUnavailableError

log = structlog.get_logger()

ATTEMPT_S = 1.0
RETRIES = Backoff(first_s=0.02, max_s=0.5)
PAGE_KEYS = 2000

_OPTIONS: Options = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
METADATA = (("hasleader", "true"),)

_UNARY = (
    ("KV", "Range", pb.RangeRequest, pb.RangeResponse),
    ("KV", "Txn", pb.TxnRequest, pb.TxnResponse),
    ("KV", "Compact", pb.CompactionRequest, pb.CompactionResponse),
    ("Lease", "LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse),
    ("Lease", "LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
    ("Maintenance", "Alarm", pb.AlarmRequest, pb.AlarmResponse),
    ("Maintenance", "Status", pb.StatusRequest, pb.StatusResponse),
    ("Maintenance", "Defragment", pb.DefragmentRequest, pb.DefragmentResponse),
)


class _Endpoint:
    """A channel and its methods by name."""

    def __init__(self, target: str, pem: Pem | None) -> None:
        self.target, self.pem = target, pem
        self.channel = channel_async(target, _OPTIONS, pem)
        self.calls: dict[str, Any] = {
            name: self.channel.unary_unary(
                f"/etcdserverpb.{service}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for service, name, request, response in _UNARY
        }
        keep_alive: Any = self.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        self.calls["LeaseKeepAlive"] = functools.partial(_first_response, keep_alive)
        self.watch: Any = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )


async def _first_response(stream: Any, request: Any, **options: Any) -> Any:
    """A stream used as a call: one request, one response."""
    call = stream(iter([request]), **options)
    try:
        response = await call.read()
        if response is grpc.aio.EOF:
            raise EndpointError(f"the stream ended without a response: {await call.details()}")
        return response
    finally:
        call.cancel()


class EtcdClient:
    """Reads, transactions, leases and maintenance, at whichever endpoint answers."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None) -> None:
        """OSError when a certificate cannot be read."""
        self._tls = tls
        pem = None if tls is None else tls.read()
        self._endpoints = [_Endpoint(target, pem) for target in endpoints]
        self._current = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Their addresses, host:port."""
        return tuple(endpoint.target for endpoint in self._endpoints)

    async def close(self) -> None:
        """Closes every channel."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(endpoint.channel.close() for endpoint in self._endpoints))

    def failed(self, index: int) -> None:
        """The endpoint does not answer: the next call goes to the next one."""
        self._renew(index)
        if index == self._current:
            self._current = (index + 1) % len(self._endpoints)

    def watch_call(self) -> tuple[int, Any]:
        """(index of the endpoint, a new Watch stream there)."""
        return self._current, self._endpoints[self._current].watch(metadata=METADATA)

    def _renew(self, index: int) -> None:
        """A channel keeps the certificates that it was created with: opens another one when they have changed."""
        old = self._endpoints[index]
        try:
            pem = None if self._tls is None else self._tls.read()
        except OSError as error:
            log.warning("certificate for etcd cannot be read, using the previous one", error=str(error))
            return
        if pem == old.pem:
            return
        log.info("certificates for etcd were renewed", endpoint=old.target)
        self._endpoints[index] = _Endpoint(old.target, pem)
        # Calls in flight end by their own deadlines.
        task = asyncio.create_task(old.channel.close(ATTEMPT_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def call(self, name: str, request: Any, timeout_s: float) -> Any:
        """The response of the first endpoint that gives one before the deadline. Raises errors of the port."""
        deadline, attempts = time.monotonic() + timeout_s, 0
        while True:
            index = self._current
            left_s = max(deadline - time.monotonic(), 0.001)
            try:
                return await self.call_at(index, name, request, min(ATTEMPT_S, left_s))
            except EndpointError as error:
                self.failed(index)
                attempts += 1
                delay_s = RETRIES.delay_s(attempts)
                if time.monotonic() + delay_s > deadline:
                    raise StoreUnavailableError(f"etcd {name}: {error}") from error
            await asyncio.sleep(delay_s)

    async def call_at(self, index: int, name: str, request: Any, timeout_s: float) -> Any:
        """One attempt at one endpoint. EndpointError when another one, or a later attempt, may succeed."""
        try:
            response = await self._endpoints[index].calls[name](request, timeout=timeout_s, metadata=METADATA)
        except grpc.aio.AioRpcError as error:
            raise translate(name, error) from error
        except asyncio.CancelledError:
            # gRPC cancels the calls of a channel that is closed, as after a change of certificates.
            if is_own_cancellation():
                raise
            raise EndpointError("the channel was closed") from None
        if response is None:
            # What grpc.aio returns for bytes that it cannot decode.
            raise EndpointError("undecodable response")
        return response

    async def txn(self, request: pb.TxnRequest, timeout_s: float = 5.0) -> pb.TxnResponse:
        """One transaction; repeating it must be harmless."""
        response: pb.TxnResponse = await self.call("Txn", request, timeout_s)
        return response

    async def grant(self, ttl_s: int, timeout_s: float = 5.0) -> pb.LeaseGrantResponse:
        """A lease. One whose response is lost expires by itself."""
        response: pb.LeaseGrantResponse = await self.call("LeaseGrant", pb.LeaseGrantRequest(TTL=ttl_s), timeout_s)
        return response

    async def keep_alive(self, lease: int, timeout_s: float) -> int:
        """Renews a lease: seconds from now; 0 = it has expired."""
        response = await self.call("LeaseKeepAlive", pb.LeaseKeepAliveRequest(ID=lease), timeout_s)
        return int(response.TTL)

    async def revoke(self, lease: int, timeout_s: float = 5.0) -> None:
        """Ends a lease and deletes its keys; a lease that has ended already is no error."""
        try:
            await self.call("LeaseRevoke", pb.LeaseRevokeRequest(ID=lease), timeout_s)
        except LeaseNotFoundError:
            return

    async def load(self, key: bytes, range_end: bytes, timeout_s: float = 30.0) -> tuple[int, list[pb.KeyValue]]:
        """(revision, all pairs as they were at that revision), in pages; again from the start when that revision is
        compacted meanwhile."""
        found: list[pb.KeyValue] = []
        revision, at = 0, key
        while True:
            request = pb.RangeRequest(key=at, range_end=range_end, limit=PAGE_KEYS, revision=revision)
            try:
                response: pb.RangeResponse = await self.call("Range", request, timeout_s)
            except CompactedError:
                log.info("revision was compacted during a read, reading again", revision=revision)
                found, revision, at = [], 0, key
                continue
            revision = revision or response.header.revision
            found += response.kvs
            if not response.more:
                return revision, found
            at = response.kvs[-1].key + b"\0"
