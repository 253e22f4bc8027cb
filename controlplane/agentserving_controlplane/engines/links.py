"""The open streams to engines, and what is pushed down them. A newer stream of an engine replaces the older one."""

from __future__ import annotations

import asyncio

from agentserving.v1 import engine_service_pb2

# Messages queued for a sidecar that does not read; beyond, its stream ends, and it learns all anew when it is back.
MAX_QUEUED = 10_000


class Link:
    """One stream; ends when `ended` is set, for the `reason` given."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[engine_service_pb2.AttachResponse] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.reason = ""

    def push(self, response: engine_service_pb2.AttachResponse) -> None:
        """Queues a message."""
        if self.outgoing.qsize() >= MAX_QUEUED:
            self.end("does not read what it is told: attach again")
        else:
            self.outgoing.put_nowait(response)

    def end(self, reason: str) -> None:
        """Makes the stream end."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()


class Links:
    """By engine id."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._links: dict[str, Link] = {}

    def attach(self, engine_id: str, link: Link) -> None:
        """Makes a stream the one of an engine; the one before ends."""
        before = self._links.get(engine_id)
        if before is not None and before is not link:
            before.end("a newer stream of this engine has attached")
        self._links[engine_id] = link

    def detach(self, engine_id: str, link: Link) -> bool:
        """False when a newer stream is there: then the engine is still attached."""
        if self._links.get(engine_id) is not link:
            return False
        del self._links[engine_id]
        return True

    def direct(self, engine_id: str, **directive: object) -> None:
        """Sends a directive to an engine, if it is attached."""
        link = self._links.get(engine_id)
        if link is not None:
            message = engine_service_pb2.Directive(epoch=self._epoch, **directive)  # type: ignore[arg-type]
            link.push(engine_service_pb2.AttachResponse(directive=message))

    def direct_all(self, **directive: object) -> None:
        """Sends a directive to every engine that is attached."""
        for engine_id in list(self._links):
            self.direct(engine_id, **directive)
