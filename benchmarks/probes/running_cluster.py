"""Probe: latency and CPU that a cluster adds to a call, and CPU of an admission over the gRPC stream.

The cluster is `agentserving up` of the checkout whose Python runs this, with one simulated engine. Latency is the
median through the gateway less the median directly from the engine, call by call in turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from agentserving import Client
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc, types_pb2

from benchmarks.http_load import Connection, completion, drive
from benchmarks.probes.worker import answer_rounds

UP_S = 60.0
PAIRS, CALLS, CONCURRENCY = 60, 300, 8
ADMISSIONS, WINDOW = 1_000, 32
# Components by words of the command lines of their processes: Envoy and its picker are the gateway.
COMPONENTS = {"gateway": ("agentserving_gateway", "--config-path"), "control plane": ("agentserving_controlplane",)}


@contextmanager
def cluster(store: str = "etcd") -> Iterator[tuple[dict[str, Any], psutil.Process]]:
    """A running cluster: its cluster.json and its supervisor. Stopped, with all its processes, on the way out."""
    command = Path(sys.executable).with_name("agentserving")
    with tempfile.TemporaryDirectory(prefix="as-") as home:
        # Without keys: what they cost is measured elsewhere (benchmarks/authentication.py).
        flags = ("--engine", "simulator", "--engines", "1", "--store", store, "--state-dir", home, "--no-auth")
        log = (Path(home) / "up.log").open("w")
        # As at a user's: the second start finds its modules compiled.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        child = subprocess.Popen([str(command), "up", *flags], stdout=log, stderr=log, cwd=home, env=environment)
        try:
            yield _until_up(child, Path(home) / "cluster.json", Path(home) / "up.log"), psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(30)
            log.close()


def _until_up(child: subprocess.Popen[bytes], file: Path, log: Path) -> dict[str, Any]:
    ends = time.monotonic() + UP_S
    while time.monotonic() < ends and child.poll() is None:
        try:
            addresses: dict[str, Any] = json.loads(file.read_text())
        except (OSError, ValueError):
            addresses = {}
        if "gateway" in addresses:
            return addresses
        time.sleep(0.02)
    raise TimeoutError(f"the cluster is not up after {UP_S:.0f} s: {log.read_text()[-500:]}")


def processes(supervisor: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The processes of each component."""
    children = {child: " ".join(child.cmdline()) for child in supervisor.children(recursive=True)}
    return {
        name: [child for child, line in children.items() if any(word in line for word in words)]
        for name, words in COMPONENTS.items()
    }


def cpu_s(processes: list[psutil.Process]) -> float:
    """User and system time."""
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


def engine_url(control_plane: str) -> str:
    """Base URL of the cluster's engine."""
    with Client(control_plane) as client:
        (engine,) = client.list_engines()
    return f"http://{engine.address.removeprefix('http://')}/v1"


async def added_ms(gateway: str, engine: str) -> float:
    """Median latency through the gateway less the median of the engine itself, milliseconds."""
    through, direct = Connection(gateway, "latency"), Connection(engine)
    took: dict[Connection, list[float]] = {through: [], direct: []}
    for _ in range(PAIRS):
        for connection, times in took.items():
            times.append(await connection.post("/v1/completions", completion(1, stream=False)))
    through.close()
    direct.close()
    return 1000 * (statistics.median(took[through]) - statistics.median(took[direct]))


async def admit_all(address: str) -> None:
    """ADMISSIONS admissions over one stream, WINDOW at a time, each ended as never started."""
    async with grpc.aio.insecure_channel(address) as channel:
        stream = call_service_pb2_grpc.CallServiceStub(channel).Admissions()
        free = asyncio.Semaphore(WINDOW)

        async def read() -> None:
            done = 0
            async for response in stream:
                if response.HasField("admitted"):
                    done += 1
                    free.release()
                    end = pb.EndCallRequest(
                        call_id=response.admitted.call_id, outcome=types_pb2.OUTCOME_CANCELLED, never_started=True
                    )
                    ends.put_nowait(pb.AdmissionsRequest(end=end))
                    if done == ADMISSIONS:
                        return

        async def write() -> None:
            for number in range(1, ADMISSIONS + 1):
                await free.acquire()
                admit = pb.AdmitCallRequest(program_id=f"probe-{number % 200}", implicit=True, prompt_tokens=500)
                await stream.write(pb.AdmissionsRequest(stream_id=number, admit=admit))
                while not ends.empty():
                    await stream.write(ends.get_nowait())

        ends: asyncio.Queue[pb.AdmissionsRequest] = asyncio.Queue()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())
        while not ends.empty():
            await stream.write(ends.get_nowait())
        await stream.done_writing()


def main() -> None:
    """Measures on one cluster, which stays up between rounds."""
    with cluster() as (addresses, supervisor):
        gateway, control_plane = str(addresses["gateway"]), str(addresses["control_plane"])
        components, engine = processes(supervisor), engine_url(control_plane)

        def measure() -> dict[str, float]:
            latency_ms = asyncio.run(added_ms(gateway, engine))
            before = {name: cpu_s(process) for name, process in components.items()}
            asyncio.run(drive(gateway, CALLS, CONCURRENCY, completion(5, stream=True), program="cpu"))
            cpu_ms = {
                f"{name} per call (ms CPU)": 1000 * (cpu_s(process) - before[name]) / CALLS
                for name, process in components.items()
            }
            before_s = cpu_s(components["control plane"])
            asyncio.run(admit_all(control_plane))
            admission_us = 1e6 * (cpu_s(components["control plane"]) - before_s) / ADMISSIONS
            return {
                "latency added by the gateway (ms)": latency_ms, **cpu_ms,
                "admission over gRPC (us CPU)": admission_us,
            }  # fmt: skip

        measure()
        answer_rounds(measure)


if __name__ == "__main__":
    main()
