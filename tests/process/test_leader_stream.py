"""A stream to the leader goes on through everything that a control plane, or a proxy before it, can send.

Over gRPC, and over frames: each test runs with both.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc as rpc
from agentserving.v1 import stream_service_pb2, stream_service_pb2_grpc
from agentserving_process import leader_stream
from agentserving_process.frames.server import StreamServer
from agentserving_process.leader_stream import Framed, LeaderStream
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Script = Callable[[Any], Awaitable[None]]
TRAILER = "grpc-status-details-bin"
HELLO = pb.AdmissionsRequest(stream_id=1000, hello=pb.GatewayHello())
WELCOME = pb.AdmissionsResponse(stream_id=7).SerializeToString()


class Owner:
    """Records what the stream delivers."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.losses = 0
        self.fail_on: int | None = None

    async def ready(self) -> None:
        pass

    def greeting(self) -> Iterable[pb.AdmissionsRequest]:
        return [HELLO]

    def connected(self) -> None:
        pass

    def received(self, response: pb.AdmissionsResponse) -> None:
        if response.stream_id == self.fail_on:
            raise AttributeError("the handler cannot digest this")
        self.got.append(response.stream_id)

    def lost(self) -> None:
        self.losses += 1


METHOD = "/agentserving.v1.CallService/Admissions"


class StreamServicer(stream_service_pb2_grpc.StreamServiceServicer):
    def __init__(self, port: int) -> None:
        self.port = port

    async def GetStreams(self, request: Any, context: Any) -> stream_service_pb2.GetStreamsResponse:
        return stream_service_pb2.GetStreamsResponse(address=f"127.0.0.1:{self.port}")


@pytest.fixture(params=["grpc", "framed"], autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Leader, "is_framed", request.param == "framed")
    return str(request.param)


class Leader:
    """A server that plays one script a stream, the last one for ever; scripts see raw bytes."""

    is_framed = False

    def __init__(self, *scripts: Script) -> None:
        self.scripts, self.streams = scripts, 0

    async def _play(self, requests: Any, context: Any) -> None:
        script = self.scripts[min(self.streams, len(self.scripts) - 1)]
        self.streams += 1
        await script(context)

    @asynccontextmanager
    async def serving(self, announced: int = 0) -> AsyncIterator[str]:
        """`announced`: serves gRPC, and names this port as that of its framed streams."""
        server = grpc.aio.server()
        handler: Any = grpc.stream_stream_rpc_method_handler(self._play)
        played = grpc.method_handlers_generic_handler("agentserving.v1.CallService", {"Admissions": handler})
        framed = StreamServer(played, {METHOD}, 16 << 20)
        if self.is_framed or announced:
            streams = StreamServicer(announced or await framed.start("127.0.0.1:0"))
            stream_service_pb2_grpc.add_StreamServiceServicer_to_server(streams, server)
        if announced or not self.is_framed:
            server.add_generic_rpc_handlers((played,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await asyncio.gather(server.stop(0), framed.stop(0))


async def good(context: Any) -> None:
    await context.write(WELCOME)
    while await context.read() is not grpc.aio.EOF:
        pass


def aborting(trailer: bytes, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Script:
    async def script(context: Any) -> None:
        await context.abort(code, "try later", trailing_metadata=((TRAILER, trailer),))

    return script


def status_with(*details: Any, code: int = code_pb2.UNAVAILABLE) -> bytes:
    status = status_pb2.Status(code=code, message="try later")
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return bytes(status.SerializeToString())


@asynccontextmanager
async def running(address: str, owner: Owner, **limits: Any) -> AsyncIterator[LeaderStream[Any, Any]]:
    stream: LeaderStream[Any, Any] = LeaderStream(
        "test", LeaderChannel(address), lambda channel: rpc.CallServiceStub(channel).Admissions(), owner,
        framed=Framed(METHOD, pb.AdmissionsResponse), **limits,
    )  # fmt: skip
    task = asyncio.create_task(stream.run())
    try:
        yield stream
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert task.cancelled()


async def until(condition: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


async def raw_malformed(context: Any) -> None:
    await context.write(WELCOME)
    await context.write(b"\xff\xff\xff")
    await asyncio.sleep(3600)


async def malformed_first(context: Any) -> None:
    await context.write(b"\x08")
    await asyncio.sleep(3600)


async def ending(context: Any) -> None:
    await context.write(WELCOME)


async def failing(context: Any) -> None:
    raise ValueError("a bug of the server's")


BREAKS: dict[str, Script] = {
    "garbage in the trailer": aborting(b"\xff\xff\xff"),
    "a trailer with another code": aborting(status_with(code=code_pb2.NOT_FOUND)),
    "an undecodable detail": aborting(
        status_pb2.Status(
            code=code_pb2.UNAVAILABLE,
            message="try later",
            details=[AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")],
        ).SerializeToString()
    ),
    "a hint that is no address": aborting(
        status_with(error_details_pb2.ErrorInfo(reason="NOT_LEADER", metadata={"leader": "unix:/tmp/x\x00:1"}))
    ),
    "a hint to an address that does not resolve": aborting(
        status_with(error_details_pb2.ErrorInfo(reason="NOT_LEADER", metadata={"leader": "no.such.host.invalid:1"}))
    ),
    "an unknown status": aborting(b"", grpc.StatusCode.DATA_LOSS),
    "a bug of the server's": failing,
    "a malformed message": raw_malformed,
    "a malformed first message": malformed_first,
    "an end without an error": ending,
}


@pytest.mark.parametrize("script", BREAKS.values(), ids=BREAKS.keys())
async def test_whatever_breaks_a_stream_another_one_is_opened(script: Script) -> None:
    leader, owner = Leader(script, script, good), Owner()
    async with leader.serving() as address, running(address, owner) as stream:
        await until(lambda: leader.streams >= 3 and stream.is_connected, "no third stream")
        assert owner.losses >= 2
        assert stream.send(HELLO)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trailer=st.binary(max_size=64))
def test_no_trailer_ends_the_loop(trailer: bytes) -> None:
    async def play() -> None:
        leader, owner = Leader(aborting(trailer), good), Owner()
        async with leader.serving() as address, running(address, owner) as stream:
            await until(lambda: stream.is_connected, "not connected after a broken trailer")

    asyncio.run(play())


async def test_a_message_that_the_owner_cannot_digest_breaks_the_stream_only() -> None:
    async def poison(context: Any) -> None:
        await context.write(WELCOME)
        await context.write(pb.AdmissionsResponse(stream_id=13).SerializeToString())
        await asyncio.sleep(3600)

    leader, owner = Leader(poison, good), Owner()
    owner.fail_on = 13
    async with leader.serving() as address, running(address, owner) as stream:
        await until(lambda: leader.streams == 2 and stream.is_connected, "no second stream")
    assert owner.got == [7, 7]


async def test_a_silent_leader_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_stream, "FIRST_ANSWER_S", 0.1)

    async def silent(context: Any) -> None:
        await asyncio.sleep(3600)

    leader, owner = Leader(silent, good), Owner()
    async with leader.serving() as address, running(address, owner) as stream:
        await until(lambda: stream.is_connected, "still with the silent leader")


async def test_a_hint_is_followed_to_the_leader() -> None:
    async with Leader(good).serving() as there:
        follower = Leader(
            aborting(status_with(error_details_pb2.ErrorInfo(reason="NOT_LEADER", metadata={"leader": there})))
        )
        async with follower.serving() as here, running(here, Owner()) as stream:
            await until(lambda: stream.is_connected, "the hint was not followed")
            assert stream.address == there


async def test_a_leader_that_does_not_read_is_left_before_memory_grows() -> None:
    async def deaf(context: Any) -> None:
        await context.write(WELCOME)
        await asyncio.sleep(3600)

    leader, owner = Leader(deaf, good), Owner()
    big = pb.AdmissionsRequest(admit=pb.AdmitCallRequest(name="g" * 100_000))
    async with leader.serving() as address, running(address, owner, max_queued=20) as stream:
        await until(lambda: stream.is_connected, "not connected")
        deadline = time.monotonic() + 30
        while stream.send(big):
            assert stream.queued <= 20
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        await until(lambda: leader.streams == 2 and stream.is_connected, "no second stream")


async def test_a_message_that_cannot_be_written_breaks_the_stream_instead_of_silencing_it() -> None:
    leader, owner = Leader(good), Owner()
    async with leader.serving() as address, running(address, owner) as stream:
        await until(lambda: stream.is_connected, "not connected")
        stream.send("no message at all")
        await until(lambda: leader.streams >= 2 and stream.is_connected, "no second stream")


async def test_messages_sent_while_no_stream_is_open_are_refused() -> None:
    async with running("127.0.0.1:1", Owner()) as stream:
        assert not stream.send(HELLO)


async def test_greeting_precedes_what_is_sent_later() -> None:
    heard: list[int] = []

    async def listening(context: Any) -> None:
        await context.write(WELCOME)
        while (message := await context.read()) is not grpc.aio.EOF:
            heard.append(pb.AdmissionsRequest.FromString(message).stream_id)

    leader, owner = Leader(listening), Owner()
    async with leader.serving() as address, running(address, owner) as stream:
        await until(lambda: stream.is_connected, "not connected")
        for number in range(50):
            assert stream.send(pb.AdmissionsRequest(stream_id=number))
        await until(lambda: len(heard) == 51, "messages are missing")
    assert heard == [1000, *range(50)]


async def test_a_channel_that_something_else_closes_is_a_lost_stream_and_no_end_of_the_task(transport: str) -> None:
    leader, owner = Leader(good), Owner()
    async with leader.serving() as address, running(address, owner) as stream:
        await until(lambda: stream.is_connected, "not connected")
        await stream._channel.close()
        if transport == "framed":
            # That connection was closed already.
            stream._stream.cancel()
        await until(lambda: leader.streams == 2 and stream.is_connected, "no second stream")


async def test_what_is_sent_in_one_turn_of_the_loop_may_be_taken_as_one_message() -> None:
    heard: list[list[int]] = []

    async def listening(context: Any) -> None:
        await context.write(WELCOME)
        while (message := await context.read()) is not grpc.aio.EOF:
            request = pb.AdmissionsRequest.FromString(message)
            heard.append([each.stream_id for each in request.more] or [request.stream_id])

    def take(waiting: deque[pb.AdmissionsRequest]) -> pb.AdmissionsRequest:
        if len(waiting) == 1:
            return waiting.popleft()
        return pb.AdmissionsRequest(more=[waiting.popleft() for _ in range(min(3, len(waiting)))])

    owner = Owner()
    async with Leader(listening).serving() as address, running(address, owner, take=take) as stream:
        await until(lambda: bool(owner.got) and heard == [[1000]], "not connected")
        for number in range(5):
            assert stream.send(pb.AdmissionsRequest(stream_id=number))
        await until(lambda: len(heard) == 3, "messages are missing")
        assert heard[1:] == [[0, 1, 2], [3, 4]]


async def test_grpc_is_used_where_framed_streams_cannot_be_reached() -> None:
    owner = Owner()
    # Nothing listens there.
    async with Leader(good).serving(announced=1) as address, running(address, owner) as stream:
        await until(lambda: stream.is_connected, "not connected over gRPC")
    assert owner.got == [7]


async def test_grpc_is_used_where_framed_streams_are_never_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_stream, "FIRST_ANSWER_S", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        async with Leader(good).serving(announced=port) as address, running(address, Owner()) as stream:
            await until(lambda: stream.is_connected, "not connected over gRPC")
