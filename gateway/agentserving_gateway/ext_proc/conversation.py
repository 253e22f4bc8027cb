"""One external processing stream: one HTTP request, from its head to the end of its answer.

The head decides where the request goes whenever it names a program; else the body does. Bodies pass through unchanged,
and nothing of an answer but its status is read. The admitted call is ended here at most once, and only when the
gateway has shown that no engine will answer it: a call that an engine works on is that engine's to report.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from agentserving_gateway.envoy import names
from agentserving_gateway.errors import HttpError
from agentserving_gateway.exchange_log.verdict import Exchange, ending_of
from agentserving_gateway.ext_proc import envoy_ext_proc_pb2 as pb
from agentserving_gateway.ext_proc import messages
from agentserving_gateway.ext_proc.messages import BodyMode, Opening
from agentserving_gateway.picker import NeedsBodyError, Pick, Picker

# Of a body that arrives while the leader is asked; beyond it the stream's flow control holds the rest back.
READ_AHEAD_BYTES = 1 << 20
# Gateways whose connections are remembered.
MAX_GATEWAYS = 4096


class Stream(Protocol):
    """A gateway's stream. `read` returns None at its end."""

    async def read(self) -> pb.ProcessingRequest | None: ...

    async def write(self, response: pb.ProcessingResponse) -> None: ...


class Gateways:
    """Connections of gateways that send the heads of answers. A stream itself does not say whether it will."""

    def __init__(self) -> None:
        self._senders: dict[str, None] = {}

    def sent_answer(self, peer: str) -> None:
        """One has just done it."""
        self._senders.setdefault(peer)
        if len(self._senders) > MAX_GATEWAYS:
            del self._senders[next(iter(self._senders))]

    def send_answers(self, peer: str) -> bool:
        """False until one was seen."""
        return peer in self._senders


class Conversation:
    """`ended` receives exchanges that did not go as planned."""

    def __init__(
        self, stream: Stream, peer: str, *, picker: Picker, gateways: Gateways,
        ended: Callable[[Exchange], None], max_body_bytes: int,
    ) -> None:  # fmt: skip
        self._stream, self._peer = stream, peer
        self._picker, self._gateways, self._ended, self._max_body = picker, gateways, ended, max_body_bytes
        # Messages that were read while the leader was asked; None = the stream has ended.
        self._ahead: deque[pb.ProcessingRequest | None] = deque()
        self._ahead_bytes = 0
        self._reading: asyncio.Task[pb.ProcessingRequest | None] | None = None
        self._opening: Opening | None = None
        self._pick: Pick | None = None
        # The head of the answer was seen; its end was seen; the call's fate was decided.
        self._answered = self._whole = self._settled = False

    async def run(self) -> None:
        """Returns when the gateway has ended the stream, or has been sent a refusal."""
        try:
            first = await self._read()
            if first is None:
                return
            self._opening = opening = messages.opening_of(first)
            try:
                pick = await self._request(opening)
                if pick is not None:
                    await self._rest(opening, pick)
            except HttpError as error:
                await self._stream.write(messages.refused(error, opening.head.path))
        finally:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait({self._reading})

    def left(self) -> None:
        """The gateway has ended the stream, or broken it: nothing more comes. Called once, after `run`."""
        opening, pick = self._opening, self._pick
        if opening is None or pick is None or self._settled:
            return
        if not self._answered:
            promised = opening.response_body is not BodyMode.NONE or self._gateways.send_answers(self._peer)
            if promised:
                self._settle(pick, status=0, client_left=True)
        elif opening.response_body is not BodyMode.NONE and not self._whole:
            self._settle(pick, status=0, client_left=True)

    # -- the request ---------------------------------------------------------------------------------------------

    async def _request(self, opening: Opening) -> Pick | None:
        """Answers the head, after the body where the body decides. None when the gateway left meanwhile."""
        # A streamed body comes too late to decide.
        follows = not opening.bodiless and opening.request_body not in (BodyMode.NONE, BodyMode.STREAMED)
        try:
            pick = await self._picked(opening, None, body_follows=follows)
        except NeedsBodyError:
            return await self._by_body(opening)
        return await self._choose(pick, in_body=False)

    async def _by_body(self, opening: Opening) -> Pick | None:
        duplex = opening.request_body is BodyMode.FULL_DUPLEX
        if not duplex:
            await self._stream.write(messages.HEAD_GOES_ON)
        pieces: list[pb.ProcessingRequest] = []
        size = 0
        while not pieces or not _ends_request(pieces[-1], opening.request_body):
            message = await self._read()
            if message is None:
                return None
            pieces.append(message)
            size += len(message.request_body.body)
            if size > self._max_body:
                raise HttpError(413, f"the body is larger than {self._max_body} bytes: send a smaller one")
        content = b"".join(piece.request_body.body for piece in pieces)
        pick = await self._choose(await self._picked(opening, content), in_body=not duplex)
        if pick is not None and duplex:
            for piece in pieces:
                await self._stream.write(messages.passed_on(piece, opening.request_body))
        return pick

    async def _choose(self, pick: Pick | None, *, in_body: bool) -> Pick | None:
        if pick is not None:
            self._pick = pick
            await self._stream.write(messages.chosen(pick, in_body=in_body))
        return pick

    async def _picked(self, opening: Opening, content: bytes | None, *, body_follows: bool = True) -> Pick | None:
        """None when the gateway ended the stream before the leader answered; HttpError, NeedsBodyError."""
        picking = asyncio.ensure_future(self._picker.pick(opening.head, content, body_follows=body_follows))
        is_taken = False
        try:
            while not picking.done() and self._ahead_bytes < READ_AHEAD_BYTES and not self._has_ended:
                await asyncio.wait({picking, self._read_task()}, return_when=asyncio.FIRST_COMPLETED)
                self._stash()
            if self._has_ended:
                return None
            pick = await picking
            is_taken = True
            return pick
        finally:
            # A cancellation may come in the turn of the loop in which the leader has answered.
            if not is_taken:
                await self._abandon(picking)

    async def _abandon(self, picking: asyncio.Future[Pick]) -> None:
        """The answer of the leader may have come in the same turn of the loop."""
        picking.cancel()
        await asyncio.wait({picking})
        if not picking.cancelled() and picking.exception() is None:
            self._picker.drop(picking.result())

    # -- what follows --------------------------------------------------------------------------------------------

    async def _rest(self, opening: Opening, pick: Pick) -> None:
        """The rest of the request, and the answer."""
        while (message := await self._read()) is not None:
            kind = message.WhichOneof("request")
            if kind == "response_headers":
                await self._answer(opening, pick, message)
            elif kind in ("response_body", "response_trailers"):
                self._whole = self._whole or kind == "response_trailers" or message.response_body.end_of_stream
                await self._stream.write(messages.passed_on(message, opening.response_body))
            else:
                await self._stream.write(messages.passed_on(message, opening.request_body))

    async def _answer(self, opening: Opening, pick: Pick, message: pb.ProcessingRequest) -> None:
        self._gateways.sent_answer(self._peer)
        self._answered, self._whole = True, message.response_headers.end_of_stream
        given = messages.headers_of(message.response_headers)
        self._settle(pick, status=messages.status_of(given), served=messages.served_by(message))
        added = {**pick.answer_headers, names.PROGRAM_ID: pick.program_id, names.CALL_ID: pick.call_id}
        if pick.call_id:
            added[names.REQUEST_ID] = opening.head.headers.get(names.REQUEST_ID, "")
        await self._stream.write(messages.answered({name: value for name, value in added.items() if value}))

    def _settle(self, pick: Pick, *, status: int, served: str = "", client_left: bool = False) -> None:
        """Reports the exchange when there is something to be done about it."""
        # Whether an engine has received the request is not known: its report, if there is one, prevails.
        exchange = Exchange(
            call_id=pick.call_id,
            tenant=pick.tenant,
            status=status,
            engine_failed=False,
            client_left=client_left,
            was_sent=True,
            addresses=pick.addresses,
            last=served,
            attempts=pick.addresses.index(served) + 1 if served in pick.addresses else 1,
        )
        self._settled = ending_of(exchange) is not None
        if self._settled or exchange.attempts > 1:
            self._ended(exchange)

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def _has_ended(self) -> bool:
        return bool(self._ahead) and self._ahead[-1] is None

    def _read_task(self) -> asyncio.Task[pb.ProcessingRequest | None]:
        if self._reading is None:
            self._reading = asyncio.ensure_future(_read(self._stream))
        return self._reading

    def _stash(self) -> None:
        if self._reading is not None and self._reading.done():
            message = self._reading.result()
            self._reading = None
            self._ahead.append(message)
            self._ahead_bytes += len(message.request_body.body) if message is not None else 0

    async def _read(self) -> pb.ProcessingRequest | None:
        """The next message; None at the end of the stream."""
        if not self._ahead:
            if self._reading is None:
                return await self._stream.read()
            await asyncio.wait({self._reading})
            self._stash()
        message = self._ahead[0]
        if message is not None:
            self._ahead.popleft()
            self._ahead_bytes -= len(message.request_body.body)
        return message


async def _read(stream: Stream) -> pb.ProcessingRequest | None:
    return await stream.read()


def _ends_request(message: pb.ProcessingRequest, mode: BodyMode) -> bool:
    """A buffered body comes in one message, whatever follows."""
    if mode in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL):
        return True
    return message.WhichOneof("request") == "request_trailers" or message.request_body.end_of_stream
