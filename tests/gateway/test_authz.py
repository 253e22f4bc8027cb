"""The picker's side of Envoy's questions: bytes on a Unix socket in, answers and dropped calls out."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from agentserving.contract.ids import CallId, ProgramId
from agentserving_gateway import authz
from agentserving_gateway.envoy import names
from agentserving_gateway.errors import HttpError
from agentserving_gateway.picker import Head, NeedsBodyError, Pick, Picker
from gateway.gateway_rig import until
from support.eventually import DEADLINE_S

PICK = Pick(addresses=("10.0.0.1:1", "10.0.0.2:2"), program_id=ProgramId("p"), call_id=CallId("p.1.0"), ticket="t")
CHAT = "/v1/chat/completions"


@dataclass
class Scripted:
    """A picker that answers as scripted; `asked` and `dropped` are what it received."""

    script: Callable[[Head, bytes | None], Pick] = lambda head, content: PICK
    asked: list[tuple[Head, bytes | None]] = field(default_factory=list)
    dropped: list[Pick] = field(default_factory=list)
    unsure: list[Pick] = field(default_factory=list)
    cancelled: int = 0
    hold: asyncio.Event | None = None

    async def pick(self, head: Head, content: bytes | None) -> Pick:
        self.asked.append((head, content))
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.script(head, content)

    def drop(self, pick: Pick, *, was_read: bool = False) -> None:
        (self.unsure if was_read else self.dropped).append(pick)


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def ask(self, path: str = "/head" + CHAT, headers: str = "", body: bytes = b"") -> None:
        head = f"POST {path} HTTP/1.1\r\nhost: picker\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        self.writer.write(head.encode("latin-1") + body)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body)."""
        async with asyncio.timeout(DEADLINE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.rstrip("\r\n").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split(" ")[1]), headers, body


@asynccontextmanager
async def serving(picker: Scripted) -> AsyncIterator[Callable[[], object]]:
    with tempfile.TemporaryDirectory(prefix="as-") as directory:
        path = Path(directory) / "picker.sock"

        async def connect() -> Connection:
            return Connection(*await asyncio.open_unix_connection(str(path)))

        async with authz.served(cast(Picker, picker), path):
            yield connect


@asynccontextmanager
async def connected(picker: Scripted) -> AsyncIterator[Connection]:
    async with serving(picker) as connect:
        found = await connect()  # type: ignore[misc]
        try:
            yield found
        finally:
            found.writer.close()


async def test_an_answer_names_engines_in_order_and_what_the_call_is() -> None:
    async with connected(Scripted()) as envoy:
        envoy.ask()
        status, headers, _ = await envoy.answer()
    assert status == 200
    assert headers[names.ENDPOINTS] == "10.0.0.1:1,10.0.0.2:2"
    assert headers[names.RETRY_ON] == names.RETRY_SERVER_ERRORS
    assert headers[names.PROGRAM_ID] == "p"
    assert headers[names.CALL_ID] == headers[names.REQUEST_ID] == "p.1.0"
    assert headers[names.TICKET] == "t"


async def test_an_only_engine_is_named_twice_and_its_own_errors_are_not_retried() -> None:
    async with connected(Scripted(lambda head, content: Pick(addresses=("a:1",)))) as envoy:
        envoy.ask()
        status, headers, _ = await envoy.answer()
    assert (status, headers[names.ENDPOINTS], headers[names.RETRY_ON]) == (200, "a:1,a:1", names.RETRY_NOTHING_ELSE)
    assert not {names.CALL_ID, names.TICKET, names.PROGRAM_ID, names.REQUEST_ID} & headers.keys()


async def test_a_question_is_read_as_the_client_sent_it() -> None:
    picker = Scripted()
    async with connected(picker) as envoy:
        sent = f"X-A: \xe9\r\nx-a: second\r\n{names.CLIENT_SESSION}: s\r\n{names.CLIENT_LENGTH}: 77\r\n"
        envoy.ask(f"/head{CHAT}?a=/body", sent)
        await envoy.answer()
        envoy.ask("/body" + CHAT, f"{names.CLIENT_LENGTH}: many\r\n", body=b"x" * 300_000)
        await envoy.answer()
    (first, nothing), (second, body) = picker.asked
    assert (first.path, first.length, nothing) == (CHAT, 77, None)
    assert first.headers["x-a"] == "\xe9"
    assert first.headers[names.TICKET] == "s", "what the client calls its session identifies a program"
    assert (second.length, body) == (0, b"x" * 300_000)


@pytest.mark.parametrize(("status", "sent"), [(429, 429), (403, 403), (503, 483), (500, 480)])
async def test_a_refusal_travels_as_what_envoy_does_not_take_for_a_failure(status: int, sent: int) -> None:
    def refuse(head: Head, content: bytes | None) -> Pick:
        raise HttpError(status, "no", "server_error", "reason", retry_after_s=0.2)

    async with connected(Scripted(refuse)) as envoy:
        envoy.ask()
        found, headers, body = await envoy.answer()
    assert (found, headers["retry-after"]) == (sent, "1")
    assert b'"no"' in body


async def test_a_picker_that_needs_the_body_says_so() -> None:
    def look(head: Head, content: bytes | None) -> Pick:
        raise NeedsBodyError

    async with connected(Scripted(look)) as envoy:
        envoy.ask()
        status, headers, _ = await envoy.answer()
    assert (status, headers[names.LOOK]) == (200, "1")
    assert names.ENDPOINTS not in headers


async def test_a_failure_of_ours_lets_the_request_pass_and_the_next_question_is_answered() -> None:
    def fail(head: Head, content: bytes | None) -> Pick:
        raise RuntimeError("a fault")

    picker = Scripted(fail)
    async with connected(picker) as envoy:
        envoy.ask()
        assert (await envoy.answer())[0] == 500
        envoy.ask("/head/no/route")
        assert (await envoy.answer())[0] == 500
        picker.script = lambda head, content: PICK
        envoy.ask()
        assert (await envoy.answer())[0] == 200


async def test_what_is_not_http_ends_the_connection() -> None:
    async with connected(Scripted()) as envoy:
        envoy.writer.write(b"\x00\x01 nonsense\r\n\r\n")
        assert (await envoy.answer())[0] == 500
        assert await envoy.reader.read() == b""


async def test_health_is_answered_while_a_call_is_decided() -> None:
    picker = Scripted(hold=asyncio.Event())
    async with serving(picker) as connect:
        waiting, health = await connect(), await connect()  # type: ignore[misc]
        waiting.ask()
        health.ask(authz.HEALTH.decode())
        assert (await health.answer())[0] == 200
        assert picker.hold is not None
        picker.hold.set()
        assert (await waiting.answer())[0] == 200
        for each in (waiting, health):
            each.writer.close()


async def test_a_client_that_leaves_while_its_call_is_decided_ends_the_decision() -> None:
    picker = Scripted(hold=asyncio.Event())
    async with connected(picker) as envoy:
        envoy.ask()
        await until(lambda: len(picker.asked) == 1)
        envoy.writer.close()
        await until(lambda: picker.cancelled == 1)
    assert picker.dropped == []


async def test_a_call_whose_answer_was_not_read_is_dropped() -> None:
    picker = Scripted(hold=asyncio.Event())
    async with serving(picker) as connect:
        envoy = await connect()  # type: ignore[misc]
        envoy.writer.transport.pause_reading()
        envoy.ask()
        await until(lambda: len(picker.asked) == 1)
        assert picker.hold is not None
        picker.hold.set()
        # One turn for the decision, one for its answer.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        envoy.writer.transport.abort()
        await until(lambda: picker.dropped == [PICK])


async def test_a_call_whose_answer_was_read_is_not_aborted_when_envoy_closes_the_connection() -> None:
    picker = Scripted()
    async with serving(picker) as connect:
        for _ in range(20):
            envoy = await connect()  # type: ignore[misc]
            envoy.ask()
            await envoy.answer()
            envoy.writer.close()
            await envoy.writer.wait_closed()
        last = await connect()  # type: ignore[misc]
        last.ask(authz.HEALTH.decode())
        await last.answer()
        last.writer.close()
        await until(lambda: len(picker.unsure) == 20)
    assert picker.dropped == []


class Closed(asyncio.Transport):
    """A transport that remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)


@pytest.mark.parametrize("answered_first", [True, False])
async def test_an_answer_and_the_end_of_its_connection_in_one_turn_of_the_loop(answered_first: bool) -> None:
    """Either the decision learns that nobody waits for it, or its call is dropped: never neither."""
    picker = Scripted(hold=asyncio.Event())
    conversation, transport = authz.Conversation(cast(Picker, picker)), Closed()
    conversation.connection_made(transport)
    conversation.data_received(f"POST /head{CHAT} HTTP/1.1\r\ncontent-length: 0\r\n\r\n".encode())
    await asyncio.sleep(0)
    assert picker.hold is not None
    picker.hold.set()
    if answered_first:
        while not transport.written:
            await asyncio.sleep(0)
    conversation.connection_lost(BrokenPipeError())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (picker.dropped == [PICK]) is answered_first
    assert (picker.cancelled == 1) is not answered_first
