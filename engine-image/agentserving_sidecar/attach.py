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
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc

log = structlog.get_logger()

# A control plane that is back has no engine to choose until we are: do not be late.
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 1.0
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

    def __init__(self, channel: grpc.aio.Channel, events: LeaderEvents) -> None:
        self._stub = rpc.EngineServiceStub(channel)
        self._events = events
        self._outgoing: asyncio.Queue[pb.AttachRequest] = asyncio.Queue()
        # True once the leader has welcomed us on this stream; `_open` while what is sent reaches the stream.
        self._open = False
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
        delay = BACKOFF_FIRST_S
        while True:
            await self.ready.wait()
            try:
                await self._attach()
            except grpc.aio.AioRpcError as error:
                log.warning("control plane away", code=error.code().name, error=error.details())
            if self.attached:
                delay = BACKOFF_FIRST_S
            self.attached = False
            await asyncio.sleep(delay * (0.5 + random.random()))
            delay = min(delay * 2, BACKOFF_MAX_S)

    async def _attach(self) -> None:
        hello = self._events.hello()
        if hello is None:
            return
        stream = self._stub.Attach()
        self._outgoing = asyncio.Queue()
        self._outgoing.put_nowait(pb.AttachRequest(hello=hello))
        for report in self._events.unacked():
            self._outgoing.put_nowait(pb.AttachRequest(report=report))
        self._open = True
        writer = asyncio.create_task(self._write(stream, self._outgoing))
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                self._take(response)
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
                self._events.leader_welcome(response.welcome)
            case "directive":
                self._events.leader_directive(response.directive)
            case "ack":
                self._events.leader_ack(response.ack.seq)
