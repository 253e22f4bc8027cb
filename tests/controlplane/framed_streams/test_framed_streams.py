"""Streams of gateways and sidecars, over gRPC and over frames: the same checks, errors and audit; and what only frames
can go wrong with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from agentserving.contract.identity import Role
from agentserving.transport.errors import from_rpc, hint_of
from agentserving.transport.framed import FramedEndpoint
from agentserving.v1 import call_service_pb2 as call
from agentserving.v1 import engine_service_pb2 as engine
from agentserving_controlplane.api.gate import Gate
from agentserving_controlplane.api.stream import FRAMED
from agentserving_process.frames import client, server
from agentserving_process.frames.client import open_stream
from agentserving_process.frames.codec import PREFACE, Kind, encoded
from agentserving_process.frames.server import StreamServer
from agentserving_process.supervision import CannotStartError
from controlplane.guarded_plane import GuardedPlane, Metadata, a_key, bearer, guarded
from support.eventually import DEADLINE_S, eventually_async

ADMISSIONS, ATTACH = "/agentserving.v1.CallService/Admissions", "/agentserving.v1.EngineService/Attach"
MESSAGES: dict[str, tuple[Any, Any]] = {
    ADMISSIONS: (call.AdmissionsRequest, call.AdmissionsResponse),
    ATTACH: (engine.AttachRequest, engine.AttachResponse),
}
HELLO = engine.AttachRequest(hello=engine.EngineHello(engine_id="e1", boot_id="b", address="127.0.0.1:9"))
GATEWAY_KEY, CLIENT_KEY = a_key(role=Role.GATEWAY), a_key("acme")
BOTH = pytest.mark.parametrize("transport", ["grpc", "framed"])


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[GuardedPlane]:
    async with guarded(tmp_path, bootstrap_keys=(GATEWAY_KEY.row, CLIENT_KEY.row)) as served:
        yield served


async def opened(
    plane: GuardedPlane, transport: str, method: str, *roles: str, metadata: Metadata = (), **certificate: Any
) -> Any:
    """A stream of this caller."""
    request, response = MESSAGES[method]
    if transport == "framed":
        return await open_stream(await plane.framed(*roles, **certificate), method, response, metadata)
    channel = await plane.parts(*roles, **certificate)
    return channel.stream_stream(method, request.SerializeToString, response.FromString)(metadata=metadata)


async def refusal(stream: Any) -> tuple[grpc.StatusCode, str]:
    """(code, reason) of a stream that is refused."""

    async def to_the_end() -> None:
        while await stream.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(to_the_end(), DEADLINE_S)
    return caught.value.code(), from_rpc(caught.value, "there").reason


@BOTH
async def test_a_sidecar_attaches_as_its_certificate_says_and_the_audit_log_says_so(
    plane: GuardedPlane, transport: str
) -> None:
    with structlog.testing.capture_logs() as lines:
        stream = await opened(plane, transport, ATTACH, "sidecar/e1")
        await stream.write(HELLO)
        assert (await stream.read()).welcome.epoch == plane.plane.epoch
    (line,) = [each for each in lines if each["event"] == "audit" and each["method"] == "EngineService.Attach"]
    assert (line["role"], line["object"], line["outcome"]) == ("sidecar/e1", "engine/e1", "OK")
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    stream.cancel()
    await eventually_async(lambda: not any(each.attached for each in plane.plane.engines), "the engine is detached")


@BOTH
@pytest.mark.parametrize(
    ("roles", "cluster", "method", "expected"),
    [
        (("gateway",), "ns/demo", ATTACH, (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")),
        (("sidecar/e1",), "ns/demo", ADMISSIONS, (grpc.StatusCode.PERMISSION_DENIED, "NOT_ALLOWED")),
        (("gateway",), "ns/other", ADMISSIONS, (grpc.StatusCode.UNAUTHENTICATED, "FOREIGN_CERTIFICATE")),
        ((), "ns/demo", ADMISSIONS, (grpc.StatusCode.UNAUTHENTICATED, "NO_CREDENTIAL")),
    ],
)
async def test_who_may_not_open_a_stream_is_refused_and_the_audit_log_says_so(
    plane: GuardedPlane, transport: str, roles: tuple[str, ...], cluster: str, method: str, expected: Any
) -> None:
    with structlog.testing.capture_logs() as lines:
        assert await refusal(await opened(plane, transport, method, *roles, cluster=cluster)) == expected
    assert [each["reason"] for each in lines if each["event"] == "audit"] == [expected[1]]


@BOTH
async def test_a_sidecar_cannot_attach_another_ones_engine(plane: GuardedPlane, transport: str) -> None:
    stream = await opened(plane, transport, ATTACH, "sidecar/e2")
    await stream.write(HELLO)
    assert (await refusal(stream))[0] is grpc.StatusCode.PERMISSION_DENIED


@BOTH
async def test_a_key_opens_a_stream_where_there_are_no_certificates(transport: str) -> None:
    async with guarded(None, bootstrap_keys=(CLIENT_KEY.row,)) as plane:
        plane.plane.api_keys.keys.put(GATEWAY_KEY.row)
        plane.finder = bearer(GATEWAY_KEY.text)
        stream = await opened(plane, transport, ADMISSIONS, metadata=bearer(GATEWAY_KEY.text))
        assert (await stream.read()).HasField("engines")
        for metadata, reason in ((bearer(CLIENT_KEY.text), "NOT_ALLOWED"), ((), "NO_CREDENTIAL")):
            assert (await refusal(await opened(plane, transport, ADMISSIONS, metadata=metadata)))[1] == reason
        # An open stream ends with its key.
        await plane.plane.api_keys.revoke(GATEWAY_KEY.row.key_id)
        assert (await refusal(stream))[1] == "KEY_REVOKED"


@BOTH
async def test_what_was_asked_before_the_gateway_closed_its_side_is_answered(
    plane: GuardedPlane, transport: str
) -> None:
    stream = await opened(plane, transport, ADMISSIONS, "gateway")
    for number in range(1, 101):
        admit = call.AdmitCallRequest(program_id="p", implicit=True, tenant="acme")
        await stream.write(call.AdmissionsRequest(stream_id=number, admit=admit))
    await stream.done_writing()
    answered = []
    while (answer := await stream.read()) is not grpc.aio.EOF:
        if answer.stream_id:
            answered.append(answer.stream_id)
    assert answered == list(range(1, 101))


async def test_no_stream_without_a_certificate_where_there_is_tls(plane: GuardedPlane) -> None:
    with pytest.raises((grpc.aio.AioRpcError, OSError)):
        await (await opened(plane, "framed", ADMISSIONS, certificate=False)).read()


async def test_other_methods_are_served_over_grpc_only(plane: GuardedPlane) -> None:
    endpoint = await plane.framed("admin")
    stream = await open_stream(endpoint, "/agentserving.v1.AdminService/ApplyPolicy", call.AdmissionsResponse)
    assert (await refusal(stream))[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "[::]:0", ":0", "localhost:0"])
async def test_streams_are_served_where_grpc_would_be(listen: str) -> None:
    streams = StreamServer(Gate(), FRAMED, 1000)
    endpoint = FramedEndpoint(address=f"127.0.0.1:{await streams.start(listen)}")
    assert (await refusal(await open_stream(endpoint, ATTACH, engine.AttachResponse)))[1] == "NOT_LEADER"
    await streams.stop(0)


async def test_a_port_that_is_taken_is_named() -> None:
    async with follower() as endpoint:
        with pytest.raises(CannotStartError, match=f"cannot listen on {endpoint.address}: Address already in use"):
            await StreamServer(Gate(), FRAMED, 1000).start(endpoint.address)


@contextlib.asynccontextmanager
async def follower(leader: str = "10.0.0.7:7070") -> AsyncIterator[FramedEndpoint]:
    """Framed streams of a control plane that does not lead, in the clear."""
    gate = Gate()
    gate.leader = leader
    streams = StreamServer(gate, FRAMED, 1000)
    yield FramedEndpoint(address=f"127.0.0.1:{await streams.start('127.0.0.1:0')}")
    await streams.stop(0)


async def test_a_follower_names_the_leader() -> None:
    async with follower() as endpoint:
        stream = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    refused = from_rpc(caught.value, "there")
    assert (refused.reason, hint_of(refused), refused.retry_after_s) == ("NOT_LEADER", "10.0.0.7:7070", 0.2)


async def bytes_until_closed(endpoint: FramedEndpoint, *parts: bytes) -> bytes:
    """What a server answers to these bytes before it closes the connection."""
    reader, writer = await asyncio.open_connection(*endpoint.address.split(":"))
    for part in parts:
        writer.write(part)
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "parts",
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",),
        (PREFACE, b"\0\0\0\1\xff"),
        (PREFACE, b"\xff\xff\xff\xff\1"),
        (PREFACE, encoded(Kind.MESSAGE, b"before the opening")),
        (PREFACE, encoded(Kind.OPENING, b"\xff\xff no message")),
        (PREFACE, encoded(Kind.OPENING, b"x" * (server.MAX_OPENING_BYTES + 1))),
    ],
)
async def test_bytes_that_make_no_sense_end_their_connection_only(parts: tuple[bytes, ...]) -> None:
    async with follower() as endpoint:
        await bytes_until_closed(endpoint, *parts)
        assert (await refusal(await open_stream(endpoint, ATTACH, engine.AttachResponse)))[1] == "NOT_LEADER"


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OPENING_S", 0.05)
    async with follower() as endpoint:
        assert await bytes_until_closed(endpoint) == b""


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """Answers what it was asked; reads nothing while it is deaf."""

    def __init__(self) -> None:
        self.is_deaf = False
        self.ended: list[str] = []

    def service(self, details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._play)

    async def _play(self, requests: Any, context: Any) -> None:
        try:
            while self.is_deaf:
                await asyncio.sleep(0.01)
            while (message := await context.read()) is not grpc.aio.EOF:
                await context.write(message)
            self.ended.append("end")
        except grpc.RpcError as error:
            self.ended.append(str(error))
            raise


@contextlib.asynccontextmanager
async def echo(played: Echo | None = None) -> AsyncIterator[tuple[Echo, StreamServer, FramedEndpoint]]:
    played = played or Echo()
    streams = StreamServer(played, FRAMED, 100_000)
    endpoint = FramedEndpoint(address=f"127.0.0.1:{await streams.start('127.0.0.1:0')}", max_response_bytes=50_000)
    yield played, streams, endpoint
    await streams.stop(0)


def message(size: int, number: int = 1) -> call.AdmissionsResponse:
    error = call.AdmissionError(message="x" * size)
    return call.AdmissionsResponse(stream_id=number, error=error)


async def test_messages_beyond_the_limit_end_the_stream_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    async with echo() as (_, _, endpoint):
        for size in (60_000, 200_000):
            stream = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
            await stream.write(message(size))
            assert (await refusal(stream))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        monkeypatch.setattr(client, "MAX_REQUEST_BYTES", 10_000)
        stream = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.write(message(20_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_peer_that_does_not_read_makes_its_writer_wait_and_nobody_else() -> None:
    async with echo() as (played, _, endpoint):
        played.is_deaf = True
        slow = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        count = 1000

        async def write() -> None:
            for number in range(1, count + 1):
                await slow.write(message(40_000, number))

        writing = asyncio.create_task(write())
        done, _ = await asyncio.wait({writing}, timeout=0.5)
        assert not done, "40 MB were taken by a server that reads nothing"
        played.is_deaf = False
        quick = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        await quick.write(message(10))
        assert (await quick.read()).stream_id == 1
        got = [(await slow.read()).stream_id for _ in range(count)]
        assert got == list(range(1, count + 1))
        await writing


class Flood(Echo):
    """Writes more than a client takes that does not read, then refuses it."""

    async def _play(self, requests: Any, context: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                while True:
                    await context.write(bytes(40_000))
        try:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no more")
        finally:
            self.ended.append("refused")


async def test_a_client_that_never_reads_does_not_keep_its_stream_from_ending() -> None:
    async with echo(Flood()) as (played, _, endpoint):
        stream = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        await eventually_async(lambda: played.ended == ["refused"], "the stream is refused")
        stream.cancel()


async def test_a_leader_that_hangs_is_noticed_by_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((client, "SILENT_S", 0.2), (client, "BEAT_S", 0.05), (server, "BEAT_S", 0.05)):
        monkeypatch.setattr(module, name, value)
    async with echo() as (_, streams, endpoint):
        stream = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        reading = asyncio.create_task(stream.read())
        # Beats keep it.
        done, _ = await asyncio.wait({reading}, timeout=1.0)
        assert not done
        monkeypatch.setattr(streams, "_connections", set())
        with pytest.raises(grpc.aio.AioRpcError, match="nothing was received for"):
            await asyncio.wait_for(reading, DEADLINE_S)


async def test_a_client_that_hangs_is_noticed_by_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in ((server, "SILENT_S", 0.2), (client, "BEAT_S", 3600.0), (server, "BEAT_S", 0.05)):
        monkeypatch.setattr(module, name, value)
    async with echo() as (played, _, endpoint):
        await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        await eventually_async(lambda: played.ended == ["nothing was received for 0.2 s"], "the silent client is lost")


async def test_a_server_that_stops_says_so() -> None:
    async with echo() as (_, streams, endpoint):
        stream = await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
        await stream.write(message(1))
        await stream.read()
        await streams.stop(0)
        with pytest.raises(grpc.aio.AioRpcError, match="this control plane is stopping"):
            await stream.read()
        with pytest.raises(ConnectionRefusedError):
            await open_stream(endpoint, ADMISSIONS, call.AdmissionsResponse)
