"""One bidirectional stream to the leading control plane, reconnected for ever.

Gateways admit calls and sidecars attach engines on such a stream. This module owns the connection: finding the leader,
introducing ourselves, noticing a leader that is silent or does not read, and trying again. What is said on the stream
belongs to the `StreamEvents` of its owner.

Nothing that a control plane, or a proxy before it, sends may end the loop: not an undecodable message or trailer, not a
hint that leads nowhere, not a message that our own handler cannot digest. Each breaks the stream; the reason is logged
and counted, and the stream is opened again after a pause.

Concurrency: everything runs on the event loop of `run`. Between taking `greeting` and letting `send` through there is
no await, so greeted messages precede those sent later, without a gap and without duplicates.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grpc
import structlog
from agentserving.transport.errors import from_rpc
from agentserving.transport.leader_channel import FIRST_ANSWER_S, LeaderChannel
from prometheus_client import Counter, Gauge

from agentserving_process.backoff import Backoff
from agentserving_process.frames.client import open_stream
from agentserving_process.supervision import reason_of

log = structlog.get_logger()

# Between streams, besides the delays of the search for the leader. It grows while a leader ends each stream soon, or
# sends messages that break it.
RECONNECT = Backoff(first_s=0.05, max_s=1.0)
# A stream that lasted this long was a good one: the next failure is the first.
WELL_AFTER_S = 5.0
# Messages that wait for a leader that does not read. Beyond, the stream is given up and opened again.
MAX_QUEUED = 10_000
# A control plane whose framed streams could not be reached is asked over gRPC for so long.
FRAMED_AGAIN_S = 60.0
# After so many framed streams in a row on which no leader has answered, gRPC is used for as long.
UNANSWERED = 3
# A reason that persists is logged again after this time.
LOG_AGAIN_S = 60.0

CONNECTED = Gauge("agentserving_leader_stream_connected", "1 = the stream to the leader is open", ["stream"])
FRAMED = Gauge("agentserving_leader_stream_framed", "1 = the open stream is framed, 0 = gRPC, or none", ["stream"])
FAILURES = Counter("agentserving_leader_stream_failures", "Streams to the leader that broke", ["stream", "reason"])

Request_co = TypeVar("Request_co", covariant=True)
Response_contra = TypeVar("Response_contra", contravariant=True)
Request = TypeVar("Request")
Response = TypeVar("Response")


class StreamEvents(Protocol[Request_co, Response_contra]):
    """The owner of a LeaderStream. An exception in any of these breaks the stream, which is opened again."""

    async def ready(self) -> None:
        """Returns when there is something to say to a leader; awaited before each stream."""
        ...

    def greeting(self) -> Iterable[Request_co]:
        """The first messages of a new stream, such as hello and everything that is unacknowledged."""
        ...

    def connected(self) -> None:
        """The leader has answered; its first message follows."""
        ...

    def received(self, response: Response_contra) -> None:
        """A message of the leader."""
        ...

    def lost(self) -> None:
        """The stream is gone, or was never connected; called once for each stream, before the next is opened."""
        ...


class StreamBrokenError(Exception):
    """Why a stream ended other than by its status; `kind` is a closed word for the metric."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Framed(NamedTuple):
    """A method that control planes may serve as framed streams, by its path in gRPC, and the class of its responses."""

    method: str
    response: type


class LeaderStream(Generic[Request, Response]):
    """`run` is the supervised task; `send` queues a message for the current stream."""

    def __init__(
        self,
        name: str,
        channel: LeaderChannel,
        open_stream: Callable[[grpc.aio.Channel], Any],
        events: StreamEvents[Request, Response],
        *,
        framed: Framed | None = None,
        max_queued: int = MAX_QUEUED,
        take: Callable[[deque[Request]], Request] = deque.popleft,
    ) -> None:
        """`name` is the label of metrics and logs; `open_stream` calls the stub's method, with metadata if need be.

        `framed`: the same method, for a leader that serves it without gRPC; None = it is always called over gRPC.

        `take` removes from the queue what the next message carries, at least one; everything that was sent in the same
        turn of the loop, or while the last message was written, is there.
        """
        self._take = take
        self._name, self._channel, self._open_stream, self._events = name, channel, open_stream, events
        self._framed, self._max_queued = framed, max_queued
        # A control plane whose framed streams could not be reached, and until when they are not tried (monotonic).
        self._grpc_only = "", 0.0
        self._unanswered = 0
        self._outgoing: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._stream: Any = None
        self._broken: StreamBrokenError | None = None
        # The time of the last log line for each (address, reason) since a leader was found.
        self._logged: dict[tuple[str, str], float] = {}
        # When the current stream was connected, on the monotonic clock; 0 = it was not.
        self._connected_s = 0.0
        self.is_connected = False

    @property
    def address(self) -> str:
        """The control plane of the current stream, or of the last one."""
        return self._channel.address

    @property
    def queued(self) -> int:
        """Messages that wait to be written."""
        return len(self._outgoing)

    def send(self, request: Request) -> bool:
        """Queues a message behind the greeting; False while no stream is open: then the message is dropped, since the
        greeting of the next stream says what matters."""
        if self._stream is None or self._broken is not None:
            return False
        if len(self._outgoing) >= self._max_queued:
            self._break(StreamBrokenError("slow", f"the leader does not read: {self._max_queued} messages wait"))
            return False
        self._outgoing.append(request)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Until it is cancelled. Closes the channel then."""
        short_streams = 0
        try:
            while True:
                self._connected_s = 0.0
                error = await self._one_stream()
                lasted_s = time.monotonic() - self._connected_s if self._connected_s else 0.0
                short_streams = short_streams + 1 if 0 < lasted_s < WELL_AFTER_S else 0
                self._note(error)
                delay_s = await self._channel.failed(error)
                await asyncio.sleep(max(delay_s, RECONNECT.delay_s(max(short_streams, 1))))
        finally:
            await self._channel.close()

    async def _one_stream(self) -> BaseException:
        """One stream from beginning to end; gives the reason of the end."""
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._events.ready()
            await self._converse()
            return StreamBrokenError("ended", "the control plane ended the stream")
        except asyncio.CancelledError as error:
            # gRPC cancels the calls of a channel that is closed: only a request to this task ends the loop.
            if task.cancelling():
                raise
            return self._broken or error
        except Exception as error:
            return self._broken or error
        finally:
            self._close()

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        self._outgoing = deque()
        if stream is not None:
            stream.cancel()
        self.is_connected = False
        CONNECTED.labels(self._name).set(0)
        FRAMED.labels(self._name).set(0)
        try:
            self._events.lost()
        except Exception as error:
            log.error("stream to the leader: error in `lost`", stream=self._name, exc_info=error)

    async def _converse(self) -> None:
        framed = await self._framed_stream()
        stream = framed or self._open_stream(await self._channel.channel())
        try:
            greeting = deque(self._events.greeting())
        except BaseException:
            stream.cancel()
            raise
        self._broken, self._outgoing, self._stream = None, greeting, stream
        writer = asyncio.create_task(self._write(stream), name=f"{self._name}-writer")
        try:
            async with asyncio.timeout(FIRST_ANSWER_S):
                response = await stream.read()
            while response is not grpc.aio.EOF:
                if response is None:
                    # What grpc.aio gives for bytes that are no message.
                    raise StreamBrokenError("malformed", "the control plane sent an undecodable message")
                if not self.is_connected:
                    self._connect(is_framed=framed is not None)
                self._events.received(response)
                response = await stream.read()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _framed_stream(self) -> Any:
        """None when the leader, or the network, offers gRPC only."""
        if self._framed is None:
            return None
        channel = self._channel
        await channel.channel()
        avoided, until_s = self._grpc_only
        endpoint = None if channel.address == avoided and time.monotonic() < until_s else await channel.framed()
        if endpoint is None:
            return None
        try:
            stream: Any = await open_stream(endpoint, self._framed.method, self._framed.response, channel.metadata())
        except (OSError, TimeoutError) as error:
            self._use_grpc()
            log.warning("framed stream cannot be opened, using gRPC", stream=self._name, address=endpoint.address,
                        reason=reason_of(error))  # fmt: skip
            return None
        # Its connection would be kept alive for nothing.
        await channel.close()
        self._unanswered += 1
        if self._unanswered == UNANSWERED:
            # Something between takes connections, but does not pass them on.
            self._use_grpc()
        return stream

    def _use_grpc(self) -> None:
        self._grpc_only, self._unanswered = (self._channel.address, time.monotonic() + FRAMED_AGAIN_S), 0

    def _connect(self, *, is_framed: bool) -> None:
        self._channel.found()
        self._unanswered = 0
        self._connected_s = time.monotonic()
        self.is_connected = True
        self._logged.clear()
        CONNECTED.labels(self._name).set(1)
        FRAMED.labels(self._name).set(is_framed)
        log.info("connected to the leader", stream=self._name, address=self._channel.address, framed=is_framed)
        self._events.connected()

    async def _write(self, stream: Any) -> None:
        """Writes what is queued, until the stream ends. Its own errors break the stream, or it would stay open and
        silent for ever."""
        try:
            while True:
                while self._outgoing:
                    await stream.write(self._take(self._outgoing))
                self._wake.clear()
                await self._wake.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The stream is over; the reader learns its status.
            return
        except Exception as error:
            self._break(StreamBrokenError("unwritable", f"a message cannot be written: {reason_of(error)}"))

    def _break(self, error: StreamBrokenError) -> None:
        self._broken = self._broken or error
        if self._stream is not None:
            self._stream.cancel()

    def _note(self, error: BaseException) -> None:
        """Counts a failure, and logs it unless the same one was logged recently."""
        kind, reason = _classified(error, self._channel.address)
        FAILURES.labels(self._name, kind).inc()
        now, key = time.monotonic(), (self._channel.address, reason)
        if now - self._logged.get(key, -LOG_AGAIN_S) < LOG_AGAIN_S:
            return
        if len(self._logged) > 100:
            self._logged.clear()
        self._logged[key] = now
        unexpected = error if kind == "internal" else None
        log.warning("no stream to the leader", stream=self._name, address=key[0], reason=reason, kind=kind,
                    exc_info=unexpected)  # fmt: skip


def _classified(error: BaseException, address: str) -> tuple[str, str]:
    """(kind, reason): a closed word for the metric, and the text for the log."""
    match error:
        case StreamBrokenError():
            return error.kind, str(error)
        case grpc.RpcError():
            translated = from_rpc(error, address)
            is_follower = translated.reason == "NOT_LEADER"
            return "not_leader" if is_follower else "status", str(translated)
        case TimeoutError():
            return "silent", f"no answer within {FIRST_ANSWER_S:g} s"
        case OSError():
            return "certificate", reason_of(error)
        case asyncio.CancelledError():
            return "status", "the call was cancelled"
        case _:
            return "internal", reason_of(error)
