"""Decision latency with 10,000 live programs at 200 calls/s on real etcd, and recovery of 100,000 live calls."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

import grpc
import uvloop
from agentserving.v1 import program_service_pb2, program_service_pb2_grpc, types_pb2
from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.etcd_store import EtcdStore
from agentserving_gateway.admission import Admission
from agentserving_gateway.identity import identify

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, cpu_seconds, pids
from benchmarks.recovery import settings

PROGRAMS, RATE, SECONDS, RUNS = 10_000, 200, 12, 5
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 2000}]}).encode()


async def open_programs(address: str) -> None:
    """Live programs, durable in etcd."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        left = iter(range(PROGRAMS))

        async def work() -> None:
            for index in left:
                await stub.OpenProgram(program_service_pb2.OpenProgramRequest(program_id=f"live-{index}"), timeout=30)

        await asyncio.gather(*(work() for _ in range(64)))


async def decisions(admission: Admission, seed: int) -> list[float]:
    """Milliseconds from a request's bytes to the engine chosen; open loop, Poisson."""
    dice = random.Random(seed)
    times: list[float] = []

    async def one(index: int) -> None:
        began = time.perf_counter()
        identity = identify({"x-agentserving-program-id": f"live-{index}"}, BODY)
        admitted = await admission.admit(identity, "default", len(BODY) // 4)
        times.append(1000 * (time.perf_counter() - began))
        if not admitted.ticket:
            raise RuntimeError("the control plane did not answer in time")
        admission.ended(admitted.call_id, types_pb2.OUTCOME_CANCELLED, never_started=True)

    began, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while due < SECONDS:
            due += dice.expovariate(RATE)
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            group.create_task(one(dice.randrange(PROGRAMS)))
    return sorted(times)


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


async def run() -> dict[str, Any]:
    """All figures."""
    raw: dict[str, Any] = {"decision": [], "recovery": []}
    async with cluster(engine="simulator", engines=2) as (made, _):
        await open_programs(made.control_plane)
        admission = Admission(grpc.aio.insecure_channel(made.control_plane))
        admission.start()
        while len(admission.engines) < 2:
            await asyncio.sleep(0.05)
        processes = pids(made, ["control-plane"])
        for seed in range(RUNS):
            before = cpu_seconds(processes)
            times = await decisions(admission, seed)
            at = {f"p{q}": times[int(q / 100 * (len(times) - 1))] for q in (50, 95, 99)}
            raw["decision"].append({**at, "cpu_ms": 1000 * (cpu_seconds(processes) - before) / len(times)})
        await admission.close()
        endpoint = f"127.0.0.1:{made.ports.etcd_client}"
        await populate(endpoint, "/bench")
        for _ in range(3):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.recovery", endpoint, "/bench", stdout=asyncio.subprocess.PIPE
            )
            raw["recovery"].append(json.loads((await child.communicate())[0]))
    return raw


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = uvloop.run(run())  # the gateway's loop, too
    against = f"{RATE} calls/s, {PROGRAMS} live programs, etcd, client on the same 2 cores"
    bars = [
        bar(f"decision-p{q}", [r[f"p{q}"] for r in raw["decision"]], f"<= {goal}", "ms", against)
        for q, goal in ((50, 0.5), (95, 2), (99, 5))
    ]
    memory = f"100,000 calls; {max(r['rss_mb'] for r in raw['recovery']):.0f} MB"
    return [*bars, bar("recovery", [r["seconds"] for r in raw["recovery"]], "<= 5", "s", memory)], raw
