"""A gateway in this process, with a real control plane behind it and engines that the test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import engine_service_pb2 as epb
from agentserving.v1 import engine_service_pb2_grpc as erpc
from agentserving.v1 import types_pb2
from agentserving_controlplane.__main__ import add_services
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_gateway.admission import Admission
from agentserving_gateway.client_connection import ClientConnection
from agentserving_gateway.draining import Connections
from agentserving_gateway.upstream_pool import UpstreamPool

KEY = b"0123456789abcdef"
Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def until(condition: Callable[[], bool], bound_s: float = 10.0) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(bound_s):
        while not condition():
            await asyncio.sleep(0.01)


@dataclass
class Engine:
    """An HTTP server that answers as scripted and remembers what it was sent."""

    name: str
    script: Script
    requests: list[bytes] = field(default_factory=list)
    closed_by_peer: int = 0
    address: str = ""
    server: asyncio.Server | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

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

    async def send(self, data: bytes, *, eof: bool = False) -> bytes:
        """Raw bytes in; everything until the gateway closes, or one whole answer, out."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            async with asyncio.timeout(20):
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
async def rig(*scripts: Script, max_body: int = 1 << 20) -> AsyncIterator[Rig]:
    """A gateway with an engine for each script."""
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
    streams = []
    for engine in engines:
        await engine.start()
        stream = erpc.EngineServiceStub(channel).Attach()
        capabilities = types_pb2.EngineCapabilities(max_num_seqs=4, block_size=16, num_blocks=1000)
        hello = epb.EngineHello(engine_id=engine.name, boot_id="b", address=engine.address, capabilities=capabilities)
        await stream.write(epb.AttachRequest(hello=hello))
        streams.append(stream)
    await until(lambda: sum(e.attached for e in plane.engines.engines.values()) == len(engines))
    admission = Admission(LeaderChannel(f"127.0.0.1:{port}"))
    admission.start()
    await until(lambda: len(admission.engines) == len(engines))
    pool, connections = UpstreamPool(), Connections()
    front = await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(admission, pool, max_body, connections), "127.0.0.1", 0
    )
    try:
        yield Rig(front.sockets[0].getsockname()[1], plane, server, admission, engines, connections)
    finally:
        front.close()
        pool.close()
        await admission.close()
        for stream in streams:
            stream.cancel()
        await channel.close()
        await server.stop(None)
        await plane.commits.close()
        for engine in engines:
            if engine.server is not None:
                engine.server.close()
