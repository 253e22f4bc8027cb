"""A connection with frames: a bounded inbox, back-pressure in both directions, and the watch over a silent peer.

A side that has sent nothing for a while sends a beat, so a peer that is heard of no more is gone or hangs. This
takes no answer: a peer that is slow to read still sends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from agentserving_process.frames.codec import PREFACE, BrokenFrameError, Decoder, Frame, Kind, encoded

# As gRPC's keepalive time of clients (agentserving.transport.channels).
BEAT_S = 1.0
# What waits for its reader. Beyond, the socket is not read, and the peer's writes wait; half must be read before it is.
MAX_HELD_FRAMES, MAX_HELD_BYTES = 256, 1 << 20
# For what was written before `close`, to a peer that does not read.
CLOSE_S = 1.0


class LostError(grpc.RpcError):
    """The connection is gone: the peer has closed it, or hangs, or broke the protocol (`__cause__`).

    A gRPC error, because servicers handle those of clients that are gone.
    """


class Connection(asyncio.Protocol):
    """`receive` belongs to one task. `tick` is called every BEAT_S by the owner."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        beat_s: float,
        silent_s: float,
        farewell: Callable[[BrokenFrameError], bytes] | None = None,
    ) -> None:
        """`beat_s`: seconds after which a beat is sent when nothing else was. `silent_s`: seconds after which a peer
        that sends nothing is lost. `farewell` makes the payload of the STATUS
        for a peer that breaks the protocol."""
        self._decoder, self._farewell = decoder, farewell
        self._loop = asyncio.get_running_loop()
        # Ticks are not exact: one that comes a little early counts.
        self._beat_s, self._silent_s = 0.9 * beat_s, silent_s
        self._transport: Any = None
        self._inbox: deque[Frame] = deque()
        self._held_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._is_reading = True
        self._heard_s = self._sent_s = self._loop.time()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost: LostError | None = None

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over."""
        self._transport = transport
        self._heard_s = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Some bytes of frames."""
        self._heard_s = self._loop.time()
        try:
            frames = self._decoder.feed(data)
        except BrokenFrameError as error:
            self._refuse(error)
            return
        for frame in frames:
            if frame[0] is not Kind.BEAT:
                self._inbox.append(frame)
                self._held_bytes += len(frame[1])
        if self._reader is not None and self._inbox:
            self._wake_reader()
        if self._is_reading and (len(self._inbox) > MAX_HELD_FRAMES or self._held_bytes > MAX_HELD_BYTES):
            self._is_reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The peer does not read as fast as we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._heard_s = self._loop.time()
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Runs once, whichever side closed it."""
        self._lose(exc or ConnectionResetError("the connection was closed"))

    # -- for the owner -------------------------------------------------------------------------------------------

    @property
    def transport(self) -> Any:
        """For facts about the peer."""
        return self._transport

    async def receive(self) -> Frame:
        """The next frame but beats. LostError after the last one."""
        while not self._inbox:
            if self._lost is not None:
                raise self._lost
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = self._inbox.popleft()
        self._held_bytes -= len(frame[1])
        has_room = len(self._inbox) <= MAX_HELD_FRAMES // 2 and self._held_bytes <= MAX_HELD_BYTES // 2
        if has_room and not self._is_reading:
            self._is_reading, self._heard_s = True, self._loop.time()
            self._transport.resume_reading()
        return frame

    async def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Waits while the peer does not read. LostError."""
        if self._lost is not None:
            raise self._lost
        self._sent_s = self._loop.time()
        self._transport.write(encoded(kind, payload))
        if not self._writable.is_set():
            await self._writable.wait()
            if self._lost is not None:
                raise self._lost

    def send_last(self, kind: Kind, payload: bytes) -> None:
        """Sends a last frame and closes; a peer that does not read gets CLOSE_S."""
        if self._lost is None:
            self._transport.write(encoded(kind, payload))
        self.close()

    def begin(self) -> None:
        """Sends what a client begins with."""
        self._transport.write(PREFACE)

    def tick(self) -> None:
        """Sends a beat if nothing else was sent; gives the peer up when it has been silent for too long."""
        if self._lost is not None:
            return
        now_s, is_writable = self._loop.time(), self._writable.is_set()
        if is_writable and now_s - self._sent_s >= self._beat_s:
            self._sent_s = now_s
            self._transport.write(encoded(Kind.BEAT))
        # A socket that we do not read says nothing about the peer, unless it does not read either.
        if (self._is_reading or not is_writable) and now_s - self._heard_s > self._silent_s:
            self.fail(TimeoutError(f"nothing was received for {self._silent_s:g} s"))

    def fail(self, error: Exception) -> None:
        """Aborts the connection without flushing it."""
        self._lose(error)
        self._transport.abort()

    def _refuse(self, error: BrokenFrameError) -> None:
        if self._farewell is None or self._lost is not None:
            self.fail(error)
            return
        self.send_last(Kind.STATUS, self._farewell(error))
        self._lose(error)

    def close(self) -> None:
        """Sends what was written, then closes."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._loop.call_later(CLOSE_S, self._transport.abort)

    def _lose(self, error: Exception) -> None:
        if self._lost is None:
            self._lost = LostError(str(error) or type(error).__name__)
            self._lost.__cause__ = error
        self._writable.set()
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
