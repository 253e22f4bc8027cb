"""The stream to the control plane's leader: hello, everything unacknowledged, then whatever happens.

Acknowledgements say "all up to here", so terminal reports must be sent in the order of the journal without a gap: what
is replayed and what happens next go through one queue, and between taking the one and letting in the other nothing
else runs.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Protocol

import grpc
import structlog
from agentserving.transport.leader_channel import FIRST_ANSWER_S, LeaderChannel
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc

log = structlog.get_logger()

BACKOFF_S = 0.05
# Reports queued for a leader that does not read; beyond, progress is skipped: the next one says more.
MAX_QUEUED = 1000


class LeaderEvents(Protocol):
    """Who answers the leader."""

    def hello(self) -> pb.EngineHello | None:
        """What to introduce ourselves with; None while the engine has not come up."""
        ...

    def unacked(self) -> list[pb.Report]:
        """Reports to send again."""
        ...

    def leader_welcome(self, welcome: pb.Welcome) -> None:
        """The leader has taken us in."""
        ...

    def leader_directive(self, directive: pb.Directive) -> None:
        """Something to do."""
        ...

    def leader_ack(self, seq: int) -> None:
        """Durable up to here."""
        ...


class LeaderLink:
    """Keeps one Attach stream."""

    def __init__(self, channel: LeaderChannel, events: LeaderEvents) -> None:
        self._channel = channel
        self._events = events
        self._outgoing: asyncio.Queue[pb.AttachRequest] = asyncio.Queue()
        # True once the leader has welcomed us on this stream; `_open` while what is sent reaches the stream.
        self._open = False
        self._said = ""
        self.attached = False
        self.ready = asyncio.Event()

    def send(self, request: pb.AttachRequest) -> None:
        """Sends while attached; otherwise drops, since everything is told anew on attaching."""
        if not self._open:
            return
        progress = request.HasField("report") and not request.report.seq and not request.report.engine_down
        if not progress or self._outgoing.qsize() < MAX_QUEUED:
            self._outgoing.put_nowait(request)

    def renew(self) -> None:
        """Says hello again: the engine has booted anew or is draining."""
        hello = self._events.hello()
        if hello is not None:
            self.ready.set()
            self.send(pb.AttachRequest(hello=hello))

    async def run(self) -> None:
        """Attaches for ever."""
        while True:
            await self.ready.wait()
            error: Exception | None = None
            try:
                await self._attach()
            except (grpc.aio.AioRpcError, OSError) as caught:
                # OSError: no answer in time, or a certificate that cannot be read.
                error = caught
                self._say(error)
            self.attached = False
            # At least a little: a leader that ends each stream must not be asked without a pause.
            await asyncio.sleep(max(await self._channel.failed(error), BACKOFF_S * (0.5 + random.random())))

    def _say(self, error: Exception) -> None:
        """Once, not at each try."""
        told = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error) or "it says nothing"
        said, self._said = self._said, f"{self._channel.address}: {told}"
        if said != self._said:
            log.warning("no leader here", address=self._channel.address, error=told)

    async def _attach(self) -> None:
        hello = self._events.hello()
        if hello is None:
            return
        stream: Any = rpc.EngineServiceStub(await self._channel.channel()).Attach()
        self._outgoing = asyncio.Queue()
        self._outgoing.put_nowait(pb.AttachRequest(hello=hello))
        for report in self._events.unacked():
            self._outgoing.put_nowait(pb.AttachRequest(report=report))
        self._open = True
        writer = asyncio.create_task(self._write(stream, self._outgoing))
        try:
            async with asyncio.timeout(FIRST_ANSWER_S):
                response = await stream.read()
            while response is not grpc.aio.EOF:
                self._take(response)
                response = await stream.read()
        finally:
            self._open = False
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            stream.cancel()

    async def _write(self, stream: Any, outgoing: asyncio.Queue[pb.AttachRequest]) -> None:
        while True:
            await stream.write(await outgoing.get())

    def _take(self, response: pb.AttachResponse) -> None:
        match response.WhichOneof("message"):
            case "welcome":
                self.attached = True
                self._channel.found()
                self._events.leader_welcome(response.welcome)
            case "directive":
                self._events.leader_directive(response.directive)
            case "ack":
                self._events.leader_ack(response.ack.seq)
