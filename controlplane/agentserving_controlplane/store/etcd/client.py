"""Calls to etcd over grpc.aio: one channel per endpoint, a deadline per attempt, the next endpoint on failure.

Every call carries ``hasleader``: a member that is cut off from its peers then answers with an error at once instead of
hanging or serving the past. Writes are only ever transactions under a guard, so that repeating one is harmless: see
etcd_store for the argument.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from agentserving.transport.connection import Pem, Tls

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.port import CompactedError, StoreUnavailableError

log = structlog.get_logger()

ATTEMPT_S = 1.0
WATCH_IDLE_S = 3.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.02, 0.5
PAGE_KEYS = 2000

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_METADATA = (("hasleader", "true"),)
_AMBIGUOUS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)


class _Endpoint:
    def __init__(self, target: str, pem: Pem | None) -> None:
        self.target, self.pem = target, pem
        if pem is None:
            self.channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(target, pem.credentials(), options=_OPTIONS)
        self.calls: dict[str, Any] = {
            name: self.channel.unary_unary(
                f"/etcdserverpb.{service}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for service, name, request, response in (
                ("KV", "Range", pb.RangeRequest, pb.RangeResponse),
                ("KV", "Txn", pb.TxnRequest, pb.TxnResponse),
                ("Lease", "LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse),
                ("Lease", "LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse),
            )
        }
        keep_alive: Any = self.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        self.calls["LeaseKeepAlive"] = functools.partial(_first_answer, keep_alive)
        self.watch: Any = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )


async def _first_answer(stream: Any, request: Any, **options: Any) -> Any:
    """A stream as a call: one question, one answer."""
    call = stream(iter([request]), **options)
    response = await call.read()
    call.cancel()
    if response is grpc.aio.EOF:
        # The status says why; one that says OK has not answered.
        raise StoreUnavailableError(f"etcd: the stream ended without an answer: {await call.details()}")
    return response


class EtcdClient:
    """Range, Txn, leases and a watch that misses nothing."""

    def __init__(self, endpoints: tuple[str, ...], tls: Tls | None = None) -> None:
        """OSError when a certificate cannot be read."""
        self._tls = tls
        pem = None if tls is None else tls.read()
        self._endpoints = [_Endpoint(target, pem) for target in endpoints]
        self._current = 0
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Closes every channel."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(endpoint.channel.close() for endpoint in self._endpoints))

    def _failed(self, index: int) -> None:
        self._renew(index)
        if index == self._current:
            self._current = (index + 1) % len(self._endpoints)

    def _renew(self, index: int) -> None:
        """A channel keeps the certificates that it was made with: with others there is another one."""
        old = self._endpoints[index]
        try:
            pem = None if self._tls is None else self._tls.read()
        except OSError as error:
            log.warning("certificate for etcd cannot be read, the one before is used", error=str(error))
            return
        if pem == old.pem:
            return
        log.info("certificates for etcd were renewed", endpoint=old.target)
        self._endpoints[index] = _Endpoint(old.target, pem)
        # What is under way there ends by its own deadline.
        task = asyncio.create_task(old.channel.close(ATTEMPT_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _call(self, name: str, request: Any, timeout_s: float) -> Any:
        """Tries until the deadline. StoreUnavailableError with the last reason."""
        deadline = time.monotonic() + timeout_s
        backoff = BACKOFF_FIRST_S
        while True:
            index = self._current
            left = deadline - time.monotonic()
            try:
                return await self._endpoints[index].calls[name](
                    request, timeout=min(ATTEMPT_S, max(left, 0.001)), metadata=_METADATA
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE and "compacted" in (error.details() or ""):
                    raise CompactedError(0) from error
                if error.code() is grpc.StatusCode.NOT_FOUND and name == "LeaseRevoke":
                    return None
                if error.code() not in _AMBIGUOUS:
                    raise StoreUnavailableError(f"etcd {name}: {error.code().name} {error.details()}") from error
                self._failed(index)
                if time.monotonic() + backoff > deadline:
                    raise StoreUnavailableError(f"etcd {name}: {error.code().name} {error.details()}") from error
            await asyncio.sleep(backoff * (0.5 + random.random()))
            backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def txn(self, request: pb.TxnRequest, timeout_s: float = 5.0) -> pb.TxnResponse:
        """One transaction; must be harmless to repeat."""
        response: pb.TxnResponse = await self._call("Txn", request, timeout_s)
        return response

    async def grant(self, ttl_s: int, timeout_s: float = 5.0) -> pb.LeaseGrantResponse:
        """A lease. One whose answer is lost runs out by itself."""
        response: pb.LeaseGrantResponse = await self._call("LeaseGrant", pb.LeaseGrantRequest(ttl=ttl_s), timeout_s)
        return response

    async def keep_alive(self, lease: int, timeout_s: float) -> int:
        """Renews a lease: seconds from now; 0 = it has run out."""
        response = await self._call("LeaseKeepAlive", pb.LeaseKeepAliveRequest(id=lease), timeout_s)
        return int(response.ttl)

    async def revoke(self, lease: int, timeout_s: float = 5.0) -> None:
        """Ends a lease and deletes its keys; one that has ended is no error."""
        await self._call("LeaseRevoke", pb.LeaseRevokeRequest(id=lease), timeout_s)

    async def load(self, key: bytes, range_end: bytes, timeout_s: float = 30.0) -> tuple[int, list[pb.KeyValue]]:
        """(revision, all pairs as they were at that revision), in pages; anew when that revision is compacted away."""
        found: list[pb.KeyValue] = []
        revision, at = 0, key
        while True:
            request = pb.RangeRequest(key=at, range_end=range_end, limit=PAGE_KEYS, revision=revision)
            try:
                response: pb.RangeResponse = await self._call("Range", request, timeout_s)
            except CompactedError:
                log.info("compacted while it was read, reading again", revision=revision)
                found, revision, at = [], 0, key
                continue
            revision = revision or response.header.revision
            found += response.kvs
            if not response.more:
                return revision, found
            at = response.kvs[-1].key + b"\0"

    async def watch(
        self, key: bytes, range_end: bytes, after_revision: int
    ) -> AsyncIterator[tuple[int, list[pb.Event]]]:
        """(revision, events) of every commit after a revision, whole and in order, over any number of reconnections."""
        following = after_revision + 1
        backoff = BACKOFF_FIRST_S
        while True:
            index = self._current
            call = self._endpoints[index].watch(metadata=_METADATA)
            pieces: list[pb.Event] = []
            try:
                create = pb.WatchCreateRequest(
                    key=key, range_end=range_end, start_revision=following, progress_notify=True, fragment=True
                )
                await call.write(pb.WatchRequest(create_request=create))
                while True:
                    response = await self._read(call)
                    if response.compact_revision:
                        raise CompactedError(response.compact_revision)
                    if response.canceled:
                        raise StoreUnavailableError(f"etcd watch: {response.cancel_reason}")
                    backoff = BACKOFF_FIRST_S
                    if response.created:
                        continue
                    # Pieces are cut inside a revision, too: only a whole answer moves us on.
                    pieces += response.events
                    if response.fragment:
                        continue
                    events, pieces = pieces, []
                    for revision, group in _by_revision(events):
                        following = revision + 1
                        yield revision, group
                    if not events:
                        following = max(following, response.header.revision + 1)
            except (grpc.aio.AioRpcError, StoreUnavailableError) as error:
                # For ever, since a watch has no deadline; so the reason must be seen.
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                log.warning("watch of etcd broke, watching again", reason=reason, after=following - 1)
                self._failed(index)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            finally:
                call.cancel()
            await asyncio.sleep(backoff * (0.5 + random.random()))
            backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _read(self, call: Any) -> pb.WatchResponse:
        """The next answer. A silent server is asked once for a sign of life: a frozen one closes nothing."""
        reading = asyncio.ensure_future(call.read())
        try:
            for asked in (False, True):
                done, _ = await asyncio.wait({reading}, timeout=WATCH_IDLE_S)
                if done:
                    response = reading.result()
                    if response is grpc.aio.EOF:
                        raise StoreUnavailableError("etcd watch: stream ended")
                    found: pb.WatchResponse = response
                    return found
                if not asked:
                    await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
            raise StoreUnavailableError("etcd watch: no sign of life")
        finally:
            if not reading.done():
                reading.cancel()


def _by_revision(events: list[pb.Event]) -> list[tuple[int, list[pb.Event]]]:
    groups: list[tuple[int, list[pb.Event]]] = []
    for event in events:
        if not groups or groups[-1][0] != event.kv.mod_revision:
            groups.append((event.kv.mod_revision, []))
        groups[-1][1].append(event)
    return groups
