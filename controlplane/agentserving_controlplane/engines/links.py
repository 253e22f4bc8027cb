"""The open streams to engines, and the messages queued for them. A newer stream of an engine replaces the older one."""

from __future__ import annotations

import asyncio

from agentserving.contract.ids import EngineId

from agentserving_controlplane.engines.directives import Directive, ToEngine

# Messages queued for a sidecar that does not read. At the limit its stream ends; it gets the whole state when it
# attaches again.
MAX_QUEUED = 10_000


class Link:
    """One stream; it is to be closed once `ended` is set, with `reason`."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[ToEngine] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.reason = ""

    def push(self, message: ToEngine) -> None:
        """Queues a message. A stream that is not read for MAX_QUEUED messages is ended."""
        if self.outgoing.qsize() >= MAX_QUEUED:
            self.end("this stream is not being read: attach again")
        else:
            self.outgoing.put_nowait(message)

    def end(self, reason: str) -> None:
        """Requests the end of the stream."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()


class Links:
    """The current stream of each engine."""

    def __init__(self) -> None:
        self._links: dict[EngineId, Link] = {}

    def __contains__(self, engine_id: EngineId) -> bool:
        return engine_id in self._links

    def attach(self, engine_id: EngineId, link: Link) -> None:
        """Makes a stream the current one of an engine; an older one ends."""
        before = self._links.get(engine_id)
        if before is not None and before is not link:
            before.end("a newer stream of this engine has attached")
        self._links[engine_id] = link

    def detach(self, engine_id: EngineId, link: Link) -> bool:
        """Removes a stream; False when it is no longer the current one, so that the engine is still attached."""
        if self._links.get(engine_id) is not link:
            return False
        del self._links[engine_id]
        return True

    def send(self, engine_id: EngineId, directive: Directive) -> None:
        """Queues a directive for an engine, if it is attached."""
        link = self._links.get(engine_id)
        if link is not None:
            link.push(directive)

    def send_all(self, directive: Directive) -> None:
        """Queues a directive for every attached engine."""
        for link in list(self._links.values()):
            link.push(directive)
