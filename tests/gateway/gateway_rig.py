"""A real Envoy with its picker in this process, a real control plane behind it and engines that the test scripts.

Between the picker and the control plane lies a `Link` that can be stalled and cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from agentserving.contract.program_headers import ProgramHeader
from agentserving.contract.signatures import signing_key
from agentserving.contract.ticket import IssuerKeys, verify
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import engine_service_pb2 as epb
from agentserving.v1 import engine_service_pb2_grpc as erpc
from agentserving.v1 import program_service_pb2_grpc as prpc
from agentserving.v1 import types_pb2
from agentserving_controlplane.__main__ import SERVER_OPTIONS, add_services
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_gateway.admission import Admission
from agentserving_gateway.envoy import BUDGET_HOLD_S, MAX_CONNECTIONS, FrontSettings
from agentserving_gateway.front import command
from agentserving_gateway.front_picker import FrontPicker
from agentserving_gateway.grants import Grants
from agentserving_gateway.identity import SOURCES, headers_of
from agentserving_process.engine_tls import EngineTls
from agentserving_process.web_tokens.verifier import TokenVerifier
from gateway.link import Link
from gateway.played_keys import PlayedKeys
from support.eventually import DEADLINE_S, eventually_async

KEY = signing_key(b"0123456789abcdef")
KEYS = IssuerKeys([KEY.public_key()])
# What a script returns: whether its connection takes another request.
Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, bool | None]]


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


async def dechunked(reader: asyncio.StreamReader) -> bytes:
    """One body, however it is cut into chunks."""
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


@dataclass
class Engine:
    """An HTTP server that answers as scripted and remembers what it was sent; its sidecar is `stream`."""

    name: str
    script: Script
    stream: Any = None
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    requests: list[bytes] = field(default_factory=list)
    accepted: int = 0
    closed_by_peer: int = 0
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    address: str = ""
    server: asyncio.Server | None = None
    # It speaks TLS.
    tls: ssl.SSLContext | None = None

    async def report(self, request: bytes, **counters: Any) -> None:
        """Says of the call in a request what a sidecar would; `outcome` makes it the last report. Nothing without a
        ticket."""
        text = value(request, "x-session-id")
        if not text:
            return
        ticket = verify(text, KEYS, engine_id=self.name, now_unix_s=0).ticket
        call = epb.CallReport(
            call_id=ticket.call_id, attempt=ticket.attempt, program_id=ticket.program_id,
            root_program_id=ticket.root_program_id, tenant=ticket.tenant, boot_id="b", **counters,
        )  # fmt: skip
        await self.say(calls=[call])

    async def say(self, **report: Any) -> None:
        """A report of the sidecar. A stream takes one write at a time."""
        async with self.writing:
            await self.stream.write(epb.AttachRequest(report=epb.Report(boot_id="b", **report)))

    def close(self) -> None:
        """Ends its server and every connection."""
        if self.server is not None:
            self.server.close()
        for writer in self.connections:
            writer.transport.abort()

    async def start(self) -> None:
        """Listens."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        self.accepted += 1
        try:
            stays: bool | None = True
            while stays:
                request = await _request(reader)
                self.requests.append(request)
                stays = await self.script(request, reader, writer)
        except asyncio.IncompleteReadError as error:
            # Between two requests it is an ordinary end.
            self.closed_by_peer += bool(error.partial)
        except ConnectionError:
            self.closed_by_peer += 1
        finally:
            self.connections.discard(writer)
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        return head + await dechunked(reader)
    return head + await reader.readexactly(int(value(head, "content-length") or 0))


async def answer_json(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A short answer, and the end of its connection. A server that closes without a word breaks the next request on it:
    at two engines in a row, once in thousands of calls, that is a 502."""
    await _answer(writer, b"connection: close\r\n")


async def answer_and_stay(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """A short answer; its connection takes the next request, as those of vLLM's server do."""
    await _answer(writer, b"")
    return True


async def _answer(writer: asyncio.StreamWriter, head: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n" + head + b"\r\n{}")
    await writer.drain()


@dataclass
class Rig:
    """Everything a test may want to touch."""

    port: int
    plane: ControlPlane
    grpc_server: grpc.aio.Server
    admission: Admission
    engines: list[Engine]
    picker: FrontPicker
    envoy: asyncio.subprocess.Process
    link: Link
    control_plane: str
    programs: prpc.ProgramServiceStub

    def play(self, *scripts: Script) -> None:
        """The engines answer by these scripts from now on, and have forgotten what they were sent."""
        for engine, script in zip(self.engines, scripts, strict=True):
            engine.script = script
            for writer in engine.connections:
                writer.transport.abort()
            engine.requests.clear()
            engine.accepted = engine.closed_by_peer = 0

    async def until_idle(self, bound_s: float = DEADLINE_S) -> None:
        """Waits until the table and the engines hold no call."""
        await until(lambda: not self.plane.table.open_calls and not self.in_flight, bound_s)

    @property
    def in_flight(self) -> int:
        """Calls that the load balancer counts."""
        return sum(engine.in_flight for engine in self.plane.engines.engines.values())

    async def send(self, data: bytes, *, eof: bool = False, bound_s: float = DEADLINE_S) -> bytes:
        """Raw bytes in; everything until the gateway closes, or one whole answer, out."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            async with asyncio.timeout(bound_s):
                head = await reader.readuntil(b"\r\n\r\n")
                lower = b"" if data.startswith(b"HEAD ") else head.lower()
                if b"content-length:" in lower:
                    size = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
                    return head + await reader.readexactly(size)
                if b"transfer-encoding: chunked" in lower:
                    with contextlib.suppress(asyncio.IncompleteReadError):
                        return head + await dechunked(reader)
                return head + await reader.read()
        finally:
            writer.close()

    async def post(
        self, path: str = "/v1/completions", body: bytes = b"{}", headers: str = "", bound_s: float = DEADLINE_S
    ) -> bytes:
        """A whole request."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        return await self.send(head.encode() + body, bound_s=bound_s)


async def start_envoy(settings: FrontSettings) -> asyncio.subprocess.Process:
    """Its log is in the directory."""
    with (settings.run_dir / "envoy.log").open("a") as log:
        return await asyncio.create_subprocess_exec(*command(settings, workers=1), stdout=log, stderr=log)


async def port_of(picker: FrontPicker, envoy: asyncio.subprocess.Process) -> int:
    """The port of an Envoy, once it accepts connections: it is known a moment earlier."""
    async with asyncio.timeout(DEADLINE_S):
        while envoy.returncode is None:
            listeners = await picker.admin.ask("GET", "/listeners?format=json")
            if listeners and (found := json.loads(listeners).get("listener_statuses")):
                port = int(found[0]["local_address"]["socket_address"]["port_value"])
                with contextlib.suppress(ConnectionRefusedError):
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    return port
            await asyncio.sleep(0.02)
    raise RuntimeError((picker.run_dir / "envoy.log").read_text())


async def all_in_force(picker: FrontPicker, engines: Sequence[Engine]) -> None:
    """Envoy knows the engines."""
    async with asyncio.timeout(DEADLINE_S):
        for engine in engines:
            while not await picker.admin.knows(engine.address):
                await asyncio.sleep(0.01)


async def attach(engine: Engine, channel: grpc.aio.Channel, models: Sequence[str]) -> None:
    """Starts an engine and attaches it as its sidecar would."""
    await engine.start()
    stream = engine.stream = erpc.EngineServiceStub(channel).Attach()
    capabilities = types_pb2.EngineCapabilities(max_num_seqs=4, block_size=16, num_blocks=1000, models=models)
    hello = epb.EngineHello(engine_id=engine.name, boot_id="b", address=engine.address, capabilities=capabilities)
    await stream.write(epb.AttachRequest(hello=hello))


async def attached(
    scripts: Sequence[Script],
    models: Sequence[Sequence[str]],
    channel: grpc.aio.Channel,
    plane: ControlPlane,
    tls: Callable[[str], ssl.SSLContext] | None = None,
) -> list[Engine]:
    """An engine for each script, once the control plane knows all of them."""
    engines = [Engine(name := f"e{index}", script, tls=tls and tls(name)) for index, script in enumerate(scripts)]
    for index, engine in enumerate(engines):
        await attach(engine, channel, models[index] if models else ())
    await until(lambda: sum(e.attached for e in plane.engines.engines.values()) == len(engines))
    return engines


async def leader_with(keys: PlayedKeys | None) -> tuple[ControlPlane, grpc.aio.Server, int]:
    """A control plane that leads, the server that it is behind, and its port."""
    settings = PlaneSettings(ticket_keys=lambda: (KEY,), policy="atlas", balancer=Balancer.LEAST_USED)
    store = MemoryStore()
    plane = ControlPlane(settings, store, await store.acquire("test"), lambda error: None)
    await plane.recover(store)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_services(server, plane)
    if keys is not None:
        keys.serve(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return plane, server, port


@asynccontextmanager
async def rig(
    *scripts: Script,
    models: Sequence[Sequence[str]] = (),
    keys: PlayedKeys | None = None,
    tokens: TokenVerifier | None = None,
    engine_tls: Callable[[str], ssl.SSLContext] | None = None,
    sources: Sequence[ProgramHeader] = SOURCES,
    **front: Any,
) -> AsyncIterator[Rig]:
    """A front with an engine for each script; `models` of each engine, none by default; `front`: FrontSettings.

    `keys`: what the leader says of clients' keys; without them all are served. `tokens`: JWTs open as well. `sources`:
    headers that name programs. `engine_tls`: of engines that speak TLS, by name, to a front with an `engine_ca`.
    """
    plane, server, port = await leader_with(keys)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    engines = await attached(scripts, models, channel, plane, engine_tls)
    link = Link(port)
    await link.start()
    stack = AsyncExitStack()
    run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="as-")))
    leader, leader_of_keys = (LeaderChannel(f"127.0.0.1:{link.port}") for _ in range(2))
    made = FrontPicker(
        run_dir, leader, tokens=tokens, keys_channel=leader_of_keys if keys is not None else None,
        max_connections=front.get("max_connections", MAX_CONNECTIONS), hold_s=front.get("hold_s", 0.0),
        budget_hold_s=front.get("budget_hold_s", BUDGET_HOLD_S),
        engine_tls=EngineTls(*(front.get(f"engine_{each}") for each in ("ca", "cert", "key"))),
        grants=Grants(lambda: [KEY]), sources=sources,
    )  # fmt: skip
    picker = await stack.enter_async_context(made)
    admission = picker.admission
    running = [asyncio.create_task(each.run()) for each in (admission, picker.crowd)]
    if picker.keys is not None:
        running.append(asyncio.create_task(picker.keys.run()))
    await until(lambda: admission.connected and len(admission.known_engines) == len(engines))
    chosen = {"listen": "127.0.0.1:0", "max_body_bytes": 1 << 20, "client_keys": keys is not None, **front}
    envoy = await start_envoy(FrontSettings(run_dir=run_dir, identity_headers=headers_of(sources), **chosen))
    try:
        front_port = await port_of(picker, envoy)
        await all_in_force(picker, engines)
        yield Rig(
            front_port, plane, server, admission, engines, picker, envoy, link, f"127.0.0.1:{port}",
            prpc.ProgramServiceStub(channel),
        )  # fmt: skip
    finally:
        if envoy.returncode is None:
            envoy.kill()
        await envoy.wait()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await stack.aclose()
        await link.close()
        for engine in engines:
            engine.stream.cancel()
        await channel.close()
        await server.stop(None)
        await plane.commits.close()
        for engine in engines:
            engine.close()
