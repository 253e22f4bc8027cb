"""The sidecar process of an engine that crashes, hangs or loads: the leader knows within two seconds."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc
from agentserving.v1 import types_pb2
from agentserving_cli.local.ports import free_ports
from sidecar.ports import until

SERVING, LOADING, STUCK, DOWN = (
    types_pb2.ENGINE_HEALTH_SERVING,
    types_pb2.ENGINE_HEALTH_LOADING,
    types_pb2.ENGINE_HEALTH_STUCK,
    types_pb2.ENGINE_HEALTH_DOWN,
)
# What is promised, and what a busy machine may add before it is a failure.
PROMISED_S, SLACK_S = 2.0, 3.0


@dataclass
class Leader(rpc.EngineServiceServicer):
    """Knows what the sidecar has said last."""

    health: int = 0
    reason: str = ""
    boot_ids: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    async def Attach(self, requests: Any, context: Any) -> None:
        await context.write(pb.AttachResponse(welcome=pb.Welcome(epoch=1)))
        async for message in requests:
            if message.HasField("hello"):
                self.models = list(message.hello.capabilities.models)
                self.boot_ids.append(message.hello.boot_id)
                self.health, self.reason = message.hello.health, message.hello.health_reason
            elif message.HasField("report"):
                self.health, self.reason = message.report.health, message.report.health_reason


class Engine:
    """An engine of two processes."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory, self._port = directory, port
        self._started: list[subprocess.Popen[bytes]] = []

    def start_core(self, boot_id: str = "b1") -> subprocess.Popen[bytes]:
        return self._start("core", str(self._directory), boot_id)

    def start_front(self) -> subprocess.Popen[bytes]:
        return self._start("front", str(self._port))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("played_engine.py")
        self._started.append(subprocess.Popen([sys.executable, str(script), *arguments]))
        return self._started[-1]

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


@dataclass
class Rig:
    leader: Leader
    engine: Engine
    http: str
    log: Path

    async def reaches(self, health: int, limit_s: float = 30) -> None:
        try:
            await until(lambda: self.leader.health == health, limit_s)
        except TimeoutError:
            found = types_pb2.EngineHealth.Name(self.leader.health)  # type: ignore[arg-type]
            raise AssertionError(f"still {found} ({self.leader.reason})\n{self.log.read_text()[-3000:]}") from None

    async def readiness(self) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.http}/readyz") as response:
            return response.status, await response.text()


def start_sidecar(log: Path, *flags: str) -> subprocess.Popen[bytes]:
    common = ("--engine-id", "e1", "--listen", f"127.0.0.1:{free_ports(1)[0]}", "--drain-s", "0.1")
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "agentserving_sidecar", *common, *flags], stderr=output)


@pytest.fixture
def engine_port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def engine(tmp_path: Path, engine_port: int) -> Iterator[Engine]:
    (tmp_path / "channel").mkdir()
    engine = Engine(tmp_path / "channel", engine_port)
    yield engine
    engine.close()


@pytest.fixture
async def rig(tmp_path: Path, engine: Engine, engine_port: int) -> AsyncIterator[Rig]:
    """A sidecar process and a leader; the engine has not been started."""
    # As control planes permit it: sidecars ping, to notice one that is stopped.
    options = [("grpc.http2.min_recv_ping_interval_without_data_ms", 300), ("grpc.http2.max_ping_strikes", 0)]
    leader, server = Leader(), grpc.aio.server(options=options)
    rpc.add_EngineServiceServicer_to_server(leader, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    http_port, log = free_ports(1)[0], tmp_path / "sidecar.log"
    sidecar = start_sidecar(
        log, "--engine-address", f"127.0.0.1:{engine_port}", "--channel-dir", str(tmp_path / "channel"),
        "--state-dir", str(tmp_path / "state"), "--control-plane", f"127.0.0.1:{port}", "--http-port", str(http_port),
    )  # fmt: skip
    try:
        yield Rig(leader, engine, f"http://127.0.0.1:{http_port}", log)
        sidecar.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(sidecar.wait) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            sidecar.kill()
        sidecar.wait()
        await server.stop(0)


async def serving(rig: Rig) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    core, front = rig.engine.start_core(), rig.engine.start_front()
    await rig.reaches(SERVING)
    return core, front


async def test_an_engine_attaches_while_it_loads_and_serves_once_its_front_answers(rig: Rig) -> None:
    await rig.reaches(LOADING)
    assert rig.leader.boot_ids == [""]
    assert "plugin has not connected" in rig.leader.reason
    rig.engine.start_core()
    await until(lambda: rig.leader.boot_ids[-1] == "b1")
    assert rig.leader.health == LOADING
    assert (await rig.readiness())[0] == 503
    rig.engine.start_front()
    await rig.reaches(SERVING)
    assert await rig.readiness() == (200, "ok\n")
    await until(lambda: rig.leader.models == ["m"])


@pytest.mark.parametrize(
    ("victim", "number", "health", "reason"),
    [
        ("core", signal.SIGKILL, DOWN, "engine process has ended"),
        ("core", signal.SIGTERM, DOWN, "engine process has ended"),
        ("core", signal.SIGSTOP, STUCK, "stopped"),
        ("front", signal.SIGKILL, DOWN, "refuses connections"),
        ("front", signal.SIGSTOP, STUCK, "does not answer"),
    ],
)
async def test_a_crash_or_a_hang_is_known_within_two_seconds(
    rig: Rig, victim: str, number: signal.Signals, health: int, reason: str
) -> None:
    core, front = await serving(rig)
    process = core if victim == "core" else front
    began = time.monotonic()
    process.send_signal(number)
    await rig.reaches(health, PROMISED_S + SLACK_S)
    print(f"{victim} {number.name}: known after {time.monotonic() - began:.2f} s")
    assert reason in rig.leader.reason
    status, text = await rig.readiness()
    assert status == 503
    assert reason in text
    if number == signal.SIGSTOP:
        process.send_signal(signal.SIGCONT)
        await rig.reaches(SERVING)
    else:
        process.wait()


async def test_an_engine_that_is_started_again_serves_again(rig: Rig) -> None:
    core, front = await serving(rig)
    for process in (core, front):
        process.kill()
        process.wait()
    await rig.reaches(DOWN)
    rig.engine.start_core("b2")
    await rig.reaches(LOADING)
    rig.engine.start_front()
    await rig.reaches(SERVING)
    assert rig.leader.boot_ids[-1] == "b2"
