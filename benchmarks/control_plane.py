"""Decision latency with 10,000 live programs at 200 calls/s on real etcd, and recovery of 100,000 live calls."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agentserving import AsyncClient
from agentserving.contract.ids import EngineId, ProgramId, Tenant
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.programs import OpenRequest

from benchmarks.bars import Bar, bar
from benchmarks.decisions import PROGRAMS, RATE
from benchmarks.local import cluster, cpu_seconds, pids
from benchmarks.recovery import settings

RUNS = 5


async def open_programs(address: str) -> None:
    """Opens the live programs; they are durable in etcd when this returns."""
    async with AsyncClient(address) as client:
        remaining = iter(range(PROGRAMS))

        async def work() -> None:
            for index in remaining:
                await client.open_program(program_id=f"live-{index}")

        await asyncio.gather(*(work() for _ in range(64)))


async def populate(endpoint: str, prefix: str) -> None:
    """Writes 10,000 programs with 10 calls in flight each to etcd."""
    store = EtcdStore((endpoint,), prefix)
    plane = ControlPlane(settings(), store, await store.acquire("bench"), lambda error: None)
    plane.commits.start()
    for index in range(10_000):
        opening = OpenRequest(tenant=Tenant("default"), program_id=ProgramId(f"live-{index}"))
        row = plane.table.programs.open(opening, plane.now())
        for call in range(10):
            request = AdmissionRequest(tenant=row.tenant, program_id=row.program_id, thread_id=f"t{call}")
            plane.table.commit(plane.table.plan_admission(request), EngineId(f"e{call % 8}"), plane.now())
        if index % 500 == 499:
            await plane.commits.durable(plane.settle())
    await plane.commits.close()
    await store.close()


async def output_of(module: str, *arguments: str) -> dict[str, float]:
    """The JSON that a module prints when it runs in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    printed: dict[str, float] = json.loads((await child.communicate())[0])
    return printed


async def run() -> dict[str, Any]:
    """Decisions, round trips and recoveries."""
    raw: dict[str, Any] = {"clock": "when the call was due", "decision": [], "transport": [], "recovery": []}
    async with cluster(engine="simulator", engines=2) as (running, _):
        await open_programs(running.control_plane)
        processes = pids(running, ["control-plane"])
        for seed in range(RUNS):
            before = cpu_seconds(processes)
            figures = await output_of("benchmarks.decisions", running.control_plane, str(seed))
            cpu_ms = 1000 * (cpu_seconds(processes) - before) / figures["calls"]
            raw["decision"].append({**figures, "cpu_ms": cpu_ms})
            raw["transport"].append(await output_of("benchmarks.transport", str(seed)))
        endpoint = f"127.0.0.1:{running.ports.etcd_client}"
        await populate(endpoint, "/bench")
        for _ in range(3):
            raw["recovery"].append(await output_of("benchmarks.recovery", endpoint, "/bench"))
    return raw


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    return asyncio.run(run())


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    against = f"{RATE} calls/s, {PROGRAMS} live programs, etcd, client on the same 2 cores; timed from {raw['clock']}"
    bars = [
        bar(f"decision-p{q}", [r[f"p{q}"] for r in raw["decision"]], f"<= {goal}", "ms", against)
        for q, goal in ((50, 0.5), (95, 2), (99, 5))
    ]
    # How much of the median decision is the round trip of the message, whatever the server does with it.
    pairs = zip(raw["transport"], raw["decision"], strict=True)
    floor = [empty["p50"] / whole["p50"] for empty, whole in pairs]
    bars.append(bar("decision-p50-transport-share", floor, "<= 1", "ratio", "a grpc.aio stream that answers at once"))
    memory = f"100,000 calls; {max(r['rss_mb'] for r in raw['recovery']):.0f} MB"
    return [*bars, bar("recovery", [r["seconds"] for r in raw["recovery"]], "<= 5", "s", memory)]
