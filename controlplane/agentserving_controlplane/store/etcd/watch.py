"""Waits for a key of etcd to be deleted, over broken streams, silent members and compactions.

Nothing is missed: a watch resumes behind the last revision that it has seen, and a compacted one ends with a new look
at the key by the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from agentserving_controlplane.store.etcd import wire_pb2 as pb
from agentserving_controlplane.store.etcd.client import RETRIES, EtcdClient
from agentserving_controlplane.store.etcd.errors import CompactedError, EndpointError, is_own_cancellation, translate
from agentserving_controlplane.store.port import StoreError

log = structlog.get_logger()

# A member that is silent for this long is asked for a sign of life, once: a frozen one closes no connection.
IDLE_S = 3.0


async def until_deleted(
    client: EtcdClient, key: bytes, after_revision: int, on_change: Callable[[bytes], None]
) -> None:
    """Returns when the key has been deleted since a revision; `on_change` is called with each new value meanwhile.

    Returns as well when the history after the revision is gone: look at the key again.
    """
    following, failures = after_revision + 1, 0
    while True:
        index, call = client.watch_call()
        try:
            request = pb.WatchCreateRequest(key=key, start_revision=following)
            await call.write(pb.WatchRequest(create_request=request))
            while True:
                response = await _read(call)
                failures = 0
                for event in response.events:
                    following = event.kv.mod_revision + 1
                    if event.type == pb.Event.DELETE:
                        return
                    on_change(event.kv.value)
        except CompactedError:
            log.info("history of a watched key was compacted, reading it again", after=following - 1)
            return
        except (StoreError, grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            # A watch has no deadline, so it retries for ever; the reason must be visible.
            reason = translate("Watch", error) if isinstance(error, grpc.aio.AioRpcError) else error
            log.warning("watch of etcd broke, watching again", reason=str(reason), after=following - 1)
            client.failed(index)
        except asyncio.CancelledError:
            if is_own_cancellation():
                raise
        finally:
            call.cancel()
        failures += 1
        await asyncio.sleep(RETRIES.delay_s(failures))


async def _read(call: Any) -> pb.WatchResponse:
    """The next response. EndpointError when the stream ends or the member is frozen."""
    reading = asyncio.ensure_future(call.read())
    try:
        for is_last in (False, True):
            done, _ = await asyncio.wait({reading}, timeout=IDLE_S)
            if done:
                return _checked(reading.result())
            if not is_last:
                await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        raise EndpointError("no sign of life")
    finally:
        if not reading.done():
            reading.cancel()


def _checked(response: Any) -> pb.WatchResponse:
    if response is grpc.aio.EOF:
        raise EndpointError("the stream ended")
    if response is None:
        raise EndpointError("undecodable response")
    found: pb.WatchResponse = response
    if found.compact_revision:
        raise CompactedError(f"compacted at {found.compact_revision}")
    if found.canceled:
        raise EndpointError(f"etcd cancelled the watch: {found.cancel_reason}")
    return found
