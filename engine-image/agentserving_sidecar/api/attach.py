"""The Attach stream to the leading control plane: hello, everything unacknowledged, then whatever happens.

An acknowledgement covers all reports up to its seq, so reports of the journal are sent in its order and without gaps:
`LeaderStream` queues the greeting before anything that is sent later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import grpc
from agentserving.transport.connection import Metadata
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc
from agentserving_process.leader_stream import Framed, LeaderStream

from agentserving_sidecar.api.messages import attach_request, from_leader
from agentserving_sidecar.values import FromLeader, Report, ToLeader, Welcome

# Messages queued for a leader that does not read. Beyond, progress reports are skipped: the next one says more.
MAX_QUEUED_PROGRESS = 1000


class LeaderEvents(Protocol):
    """The owner of the link. All methods are called on the event loop."""

    def greeting(self) -> Iterable[ToLeader]:
        """The first messages of a stream."""
        ...

    def received(self, message: FromLeader) -> None:
        """Takes a message of the leader; called in the order of the stream."""
        ...


class LeaderLink:
    """One Attach stream at a time; `run` is a supervised task."""

    def __init__(self, channel: LeaderChannel, events: LeaderEvents) -> None:
        self._events = events
        self._stream: LeaderStream[pb.AttachRequest, pb.AttachResponse] = LeaderStream(
            "attach", channel, lambda to: _open(to, channel.metadata()), self,
            framed=Framed("/agentserving.v1.EngineService/Attach", pb.AttachResponse), max_queued=100_000,
        )  # fmt: skip
        self.attached = False

    async def run(self) -> None:
        """Attaches, again after each failure, until cancelled."""
        await self._stream.run()

    def send(self, message: ToLeader) -> None:
        """Sends while a stream is open; drops the message otherwise, since each stream begins with the whole state."""
        is_optional = isinstance(message, Report) and message.is_progress
        if not is_optional or self._stream.queued < MAX_QUEUED_PROGRESS:
            self._stream.send(attach_request(message))

    # -- StreamEvents of the LeaderStream ------------------------------------------------------------------------

    async def ready(self) -> None:
        """Always: an engine that is still loading attaches, too."""

    def greeting(self) -> Iterable[pb.AttachRequest]:
        """Hello and the journal."""
        return [attach_request(message) for message in self._events.greeting()]

    def connected(self) -> None:
        """The welcome follows."""

    def received(self, response: pb.AttachResponse) -> None:
        """Messages of kinds that this version does not know are ignored."""
        message = from_leader(response)
        if isinstance(message, Welcome):
            self.attached = True
        if message is not None:
            self._events.received(message)

    def lost(self) -> None:
        """The next stream begins with a welcome, too."""
        self.attached = False


def _open(channel: grpc.aio.Channel, metadata: Metadata) -> Any:
    return rpc.EngineServiceStub(channel).Attach(metadata=metadata)
