"""What of an answer goes to the client, and what is added: keep-alive comments and the event that ends a broken stream.

Pure: the application's messages and the time go in, what to send comes out.

An event stream that stays silent for `keep_alive_s` gets an SSE comment, at the boundary of two events. vLLM sends the
head of a stream before it queues the call, so nearly always its own head is there. If not (a long prompt is tokenized,
images are downloaded, or a call that cannot be streamed is answered as one event), the answer to a request that asked
for a stream is opened with a head of ours, after the same silence: no error that vLLM finds within that time loses its
status. An error that comes later becomes the dialect's error event.

    WAITING --head of a stream--> STREAMING --last chunk--> PASSING
       | \\--any other head---------------------------------> PASSING
       | silence                      ^
       v                              |
     OPENED --head of a stream--------/
       \\--any other head--> TRANSLATING --its body as an event--> CLOSED

PASSING is transparent. In CLOSED the answer was ended here, or the client has left: the application's messages are
dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from agentserving_engine.http.dialects import Dialect, error_document, error_event, translated_error
from agentserving_engine.http.request_body import RefusedBodyError

COMMENT = b": keep-alive\n\n"
EVENT_STREAM = b"text/event-stream"
# An error document of vLLM has less than a kilobyte.
MAX_TRANSLATED_BYTES = 1 << 16
BROKEN = "the engine failed before the answer was complete"

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Head:
    """Status and header fields, names in lower case."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of the body; `last` ends the answer."""

    data: bytes
    last: bool = False


class _State(Enum):
    WAITING = auto()
    OPENED = auto()
    STREAMING = auto()
    TRANSLATING = auto()
    PASSING = auto()
    CLOSED = auto()


_COMMENTED = (_State.OPENED, _State.STREAMING, _State.TRANSLATING)
# A global, because this one is read for each chunk and attributes of an Enum are slow.
_STREAMING = _State.STREAMING


class Answer:
    """One answer. `keep_alive_s` is the longest silence; 0 = no comments and no early head."""

    __slots__ = (
        "_asked_for_stream", "_dialect", "_first", "_keep_alive_s", "_last", "_quiet_since", "_state", "_status",
        "_translated",
    )  # fmt: skip

    def __init__(self, dialect: Dialect, keep_alive_s: float) -> None:
        self._dialect, self._keep_alive_s = dialect, keep_alive_s
        self._state = _State.WAITING
        self._asked_for_stream = False
        self._quiet_since = 0.0
        self._first = self._last = b""
        self._status = 200
        self._translated = bytearray()

    @property
    def due_at(self) -> float | None:
        """When `tick` may have something to send; None = never, unless the application's head changes that."""
        if not self._keep_alive_s:
            return None
        if self._state in _COMMENTED or (self._state is _State.WAITING and self._asked_for_stream):
            return self._quiet_since + self._keep_alive_s
        return None

    def request_complete(self, *, stream: bool, now: float) -> None:
        """The last byte of the request is there; `stream`: the client asked for a stream."""
        self._asked_for_stream, self._quiet_since = stream, now

    def refuse(self, error: RefusedBodyError) -> Sequence[Head | Chunk]:
        """The whole answer to a request that vLLM must not see. Nothing if an answer has begun."""
        if self._state is not _State.WAITING:
            return ()
        self._state = _State.CLOSED
        body = error_document(self._dialect, error.status, error.message, param=error.param, code=error.code)
        headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        return Head(error.status, headers), Chunk(body, last=True)

    def head(self, status: int, headers: Headers, now: float) -> bool:
        """The application's head; True = send it."""
        streams = status == 200 and _is_event_stream(headers)
        if self._state is _State.WAITING:
            self._state = _State.STREAMING if streams else _State.PASSING
            self._quiet_since = now
            return True
        if self._state is _State.OPENED:
            self._state, self._status = (_State.STREAMING if streams else _State.TRANSLATING), status
            return False
        return self._state is not _State.CLOSED

    def chunk(self, data: bytes, *, last: bool, now: float) -> bytes | None:
        """A chunk of the application's body: what to send for it, nearly always the same object. None = nothing."""
        if self._state is _STREAMING:
            self._quiet_since = now
            if data:
                self._last = data
                if not self._first:
                    self._first = data
            if last:
                self._state = _State.PASSING
            return data
        if self._state is _State.TRANSLATING:
            return self._translate(data, last=last)
        return None if self._state is _State.CLOSED else data

    def tick(self, now: float) -> Sequence[Head | Chunk]:
        """What to send because nothing was sent since `due_at`."""
        due = self.due_at
        if due is None or now < due:
            return ()
        self._quiet_since = now
        if self._state is _State.WAITING:
            self._state = _State.OPENED
            # As vLLM's own. Proxies that buffer answers (nginx) would withhold the comments.
            headers = (
                (b"content-type", EVENT_STREAM + b"; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            )
            return Head(200, headers), Chunk(COMMENT)
        return (Chunk(COMMENT),) if self._between_events() else ()

    def client_left(self) -> None:
        """Nothing more can be sent."""
        self._state = _State.CLOSED

    def application_ended(self) -> Chunk | None:
        """The application has returned or failed: what ends a stream that it has left open."""
        if self._state not in _COMMENTED:
            return None
        # A chunk that was cut within an event would swallow the first line of the next.
        gap = b"" if self._between_events() else b"\n\n"
        self._state = _State.CLOSED
        return Chunk(gap + error_event(self._dialect, BROKEN, first=self._first, last=self._last), last=True)

    def _between_events(self) -> bool:
        return not self._last or self._last.endswith((b"\n\n", b"\r\n\r\n"))

    def _translate(self, data: bytes, *, last: bool) -> bytes | None:
        if len(self._translated) < MAX_TRANSLATED_BYTES:
            self._translated += data
        if not last:
            return None
        self._state = _State.PASSING
        return translated_error(self._dialect, self._status, bytes(self._translated))


def _is_event_stream(headers: Headers) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers)
