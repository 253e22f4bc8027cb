"""A gateway in this process, with a real control plane behind it and engines that the test scripts.

Between the gateway and the control plane lies a `Link` that can be stalled and cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from agentserving.contract.ticket import verify
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import engine_service_pb2 as epb
from agentserving.v1 import engine_service_pb2_grpc as erpc
from agentserving.v1 import program_service_pb2_grpc as prpc
from agentserving.v1 import types_pb2
from agentserving_controlplane.__main__ import add_services
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_gateway.admission import Admission
from agentserving_gateway.client_connection import ClientConnection
from agentserving_gateway.draining import Connections
from agentserving_gateway.exchange import Backends
from agentserving_gateway.upstream_pool import UpstreamPool
from support.eventually import DEADLINE_S, eventually_async

KEY = b"0123456789abcdef"
Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def until(condition: Callable[[], bool], bound_s: float = DEADLINE_S) -> None:
    """Waits for a condition."""
    await eventually_async(condition, deadline_s=bound_s)


def value(message: bytes, name: str) -> str:
    """A header of a request or an answer; empty when there is none."""
    for line in message.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]:
        key, _, found = line.partition(": ")
        if key.lower() == name:
            return found
    return ""


class Link:
    """Forwards connections to a port; what it forwards can be held up for a while, or broken."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens on `port`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    def stall(self) -> None:
        """Holds up everything until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        """Forwards again."""
        self._flows.set()

    def cut(self) -> None:
        """Breaks all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        """Ends."""
        self.flow()
        if self._server is not None:
            self._server.close()
        self.cut()


@dataclass
class Engine:
    """An HTTP server that answers as scripted and remembers what it was sent; its sidecar is `stream`."""

    name: str
    script: Script
    stream: Any = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    requests: list[bytes] = field(default_factory=list)
    closed_by_peer: int = 0
    address: str = ""
    server: asyncio.Server | None = None

    async def report(self, request: bytes, **counters: Any) -> None:
        """Says of the call in a request what a sidecar would; `outcome` makes it the last report. Nothing without a
        ticket."""
        text = value(request, "x-session-id")
        if not text:
            return
        ticket = verify(text, KEY, engine_id=self.name, now_unix_s=0)
        call = epb.CallReport(
            call_id=ticket.call_id, attempt=ticket.attempt, program_id=ticket.program_id,
            root_program_id=ticket.root_program_id, tenant=ticket.tenant, boot_id="b", **counters,
        )  # fmt: skip
        await self.say(calls=[call])

    async def say(self, **report: Any) -> None:
        """A report of the sidecar. A stream takes one write at a time."""
        async with self.writing:
            await self.stream.write(epb.AttachRequest(report=epb.Report(boot_id="b", **report)))

    async def start(self) -> None:
        """Listens."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ),
                0,
            )
            request = head + await reader.readexactly(length)
            self.requests.append(request)
            await self.script(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_by_peer += 1
        finally:
            writer.close()


async def answer_json(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A short answer."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
    await writer.drain()


@dataclass
class Rig:
    """Everything a test may want to touch."""

    port: int
    plane: ControlPlane
    grpc_server: grpc.aio.Server
    admission: Admission
    engines: list[Engine]
    connections: Connections
    link: Link
    control_plane: str
    programs: prpc.ProgramServiceStub

    async def until_idle(self, bound_s: float = DEADLINE_S) -> None:
        """Waits until the table and the engines hold no call."""
        await until(lambda: not self.plane.table.open_calls and not self.in_flight, bound_s)

    @property
    def in_flight(self) -> int:
        """Calls that the load balancer counts."""
        return sum(engine.in_flight for engine in self.plane.engines.engines.values())

    async def send(self, data: bytes, *, eof: bool = False) -> bytes:
        """Raw bytes in; everything until the gateway closes, or one whole answer, out."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                lower = head.lower()
                if b"content-length:" in lower:
                    size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
                    return head + await reader.readexactly(size)
                return head + await reader.read()
        finally:
            writer.close()

    async def post(self, path: str = "/v1/completions", body: bytes = b"{}", headers: str = "") -> bytes:
        """A whole request."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        return await self.send(head.encode() + body)


@asynccontextmanager
async def rig(*scripts: Script, max_body: int = 1 << 20, models: Sequence[Sequence[str]] = ()) -> AsyncIterator[Rig]:
    """A gateway with an engine for each script; `models` of each engine, none by default."""
    settings = PlaneSettings(ticket_keys=lambda: (KEY,), policy="atlas", balancer=Balancer.LEAST_USED)
    store = MemoryStore()
    plane = ControlPlane(settings, store, await store.acquire("test"), lambda error: None)
    await plane.recover(store)
    server = grpc.aio.server()
    add_services(server, plane)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    engines = [Engine(f"e{index}", script) for index, script in enumerate(scripts)]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    for index, engine in enumerate(engines):
        await engine.start()
        stream = engine.stream = erpc.EngineServiceStub(channel).Attach()
        capabilities = types_pb2.EngineCapabilities(
            max_num_seqs=4, block_size=16, num_blocks=1000, models=models[index] if models else ()
        )
        hello = epb.EngineHello(engine_id=engine.name, boot_id="b", address=engine.address, capabilities=capabilities)
        await stream.write(epb.AttachRequest(hello=hello))
    await until(lambda: sum(e.attached for e in plane.engines.engines.values()) == len(engines))
    link = Link(port)
    await link.start()
    admission = Admission(LeaderChannel(f"127.0.0.1:{link.port}"))
    running = asyncio.create_task(admission.run())
    await until(lambda: admission.connected and len(admission.known_engines) == len(engines))
    pool, connections = UpstreamPool(), Connections()
    backends = Backends(admission, pool)
    front = await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(backends, max_body, connections), "127.0.0.1", 0
    )
    try:
        address = f"127.0.0.1:{port}"
        yield Rig(
            front.sockets[0].getsockname()[1], plane, server, admission, engines, connections, link, address,
            prpc.ProgramServiceStub(channel),
        )  # fmt: skip
    finally:
        front.close()
        pool.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        for engine in engines:
            engine.stream.cancel()
        await channel.close()
        await server.stop(None)
        await plane.commits.close()
        for engine in engines:
            if engine.server is not None:
                engine.server.close()
