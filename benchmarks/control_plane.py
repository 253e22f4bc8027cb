"""Decision latency with 10,000 live programs at 200 calls/s on real etcd, and recovery of 100,000 live calls."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
from agentserving.v1 import program_service_pb2, program_service_pb2_grpc
from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.store.etcd.store import EtcdStore

from benchmarks.bars import Bar, bar
from benchmarks.decisions import PROGRAMS, RATE
from benchmarks.local import cluster, cpu_seconds, pids
from benchmarks.recovery import settings

RUNS = 5


async def open_programs(address: str) -> None:
    """Live programs, durable in etcd."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        left = iter(range(PROGRAMS))

        async def work() -> None:
            for index in left:
                await stub.OpenProgram(program_service_pb2.OpenProgramRequest(program_id=f"live-{index}"), timeout=30)

        await asyncio.gather(*(work() for _ in range(64)))


async def populate(endpoint: str, prefix: str) -> None:
    """10,000 programs of 10 calls in flight each, in etcd."""
    store = EtcdStore((endpoint,), prefix)
    plane = ControlPlane(settings(endpoint, prefix), store, await store.acquire("bench"), lambda error: None)
    plane.commits.start()
    for index in range(10_000):
        row = plane.table.open("default", f"live-{index}", now_us())
        for call in range(10):
            plane.table.admit(row, now_us(), engine_id=f"e{call % 8}", thread_id=f"t{call}", parents=(), attempt=1)
        if index % 500 == 499:
            await plane.commits.durable(plane.settle())
    await plane.commits.close()
    await store.close()


async def printed(module: str, *arguments: str) -> dict[str, float]:
    """What a module prints, run in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    found: dict[str, float] = json.loads((await child.communicate())[0])
    return found


async def run() -> dict[str, Any]:
    """All figures."""
    raw: dict[str, Any] = {"decision": [], "transport": [], "recovery": []}
    async with cluster(engine="simulator", engines=2) as (made, _):
        await open_programs(made.control_plane)
        processes = pids(made, ["control-plane"])
        for seed in range(RUNS):
            before = cpu_seconds(processes)
            told = await printed("benchmarks.decisions", made.control_plane, str(seed))
            cpu_ms = 1000 * (cpu_seconds(processes) - before) / told["calls"]
            raw["decision"].append({**told, "cpu_ms": cpu_ms})
            raw["transport"].append(await printed("benchmarks.transport", str(seed)))
        endpoint = f"127.0.0.1:{made.ports.etcd_client}"
        await populate(endpoint, "/bench")
        for _ in range(3):
            raw["recovery"].append(await printed("benchmarks.recovery", endpoint, "/bench"))
    return raw


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(run())
    against = f"{RATE} calls/s, {PROGRAMS} live programs, etcd, client on the same 2 cores"
    bars = [
        bar(f"decision-p{q}", [r[f"p{q}"] for r in raw["decision"]], f"<= {goal}", "ms", against)
        for q, goal in ((50, 0.5), (95, 2), (99, 5))
    ]
    # How much of the median decision is the message there and back, whatever is behind it.
    pairs = zip(raw["transport"], raw["decision"], strict=True)
    floor = [empty["p50"] / whole["p50"] for empty, whole in pairs]
    bars.append(bar("decision-p50-transport-share", floor, "<= 1", "ratio", "a grpc.aio stream that answers at once"))
    memory = f"100,000 calls; {max(r['rss_mb'] for r in raw['recovery']):.0f} MB"
    return [*bars, bar("recovery", [r["seconds"] for r in raw["recovery"]], "<= 5", "s", memory)], raw
