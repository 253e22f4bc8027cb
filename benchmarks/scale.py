"""``python -m benchmarks.scale [--quick | --part PART]``: how the control plane grows with programs and engines.

A control plane and etcd in processes of their own, over the real contract, with simulated sidecars and gateways in one
process (scale_load.py). Measured are calls a second in a closed loop, the time until an admission at RATE, CPU a call
and memory, each for growing numbers of live programs and of engines; then recovery (the process is killed and started
again) and failover (the leader of two is killed). Each part takes some minutes and writes results/scale-PART.json, and
scale_report.py draws them; --quick measures small points once and writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
from agentserving.contract.ids import ProgramId, Tenant
from agentserving_cli.local.cluster import find_etcd
from agentserving_cli.local.ports import free_ports
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.store.etcd.store import EtcdStore
from agentserving_controlplane.table.programs import OpenRequest
from rich.console import Console
from rich.table import Table

from benchmarks import records, scale_bars
from benchmarks.bar_table import bar_table
from benchmarks.recovery import settings

RATE = 200
# Cores for the load and for what is measured, where there are two: neither waits for the other.
LOAD_CORES, MEASURED_CORES = {0}, {1}
START_S = 60.0
LEASE_S = 5
PREFIX = "/agentserving/scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured. A point is (programs, engines)."""

    points: tuple[tuple[int, int], ...] = ()
    runs: int = 5
    seconds: float = 3.0
    outages: int = 0
    outage_programs: int = 100_000
    outage_engines: int = 100


PARTS = {
    "programs": Plan(points=((100, 2), (1_000, 2), (10_000, 2), (100_000, 2))),
    "engines": Plan(points=((1_000, 16), (1_000, 128), (1_000, 1_000), (100_000, 1_000))),
    "outages": Plan(outages=3),
}
QUICK = Plan(
    points=((100, 2), (2_000, 2), (100, 50)), runs=1, seconds=2.0, outages=1, outage_programs=2_000, outage_engines=10
)


class Part:
    """A process of the measured side."""

    def __init__(self, argv: list[str], ready_url: str, log: Path, cores: set[int]) -> None:
        self._argv, self._ready_url, self._log, self._cores = argv, ready_url, log, cores
        self.process: psutil.Popen | None = None

    async def start(self) -> None:
        """Returns when it is ready. TimeoutError."""
        await self.launch()
        await until_ready(self._ready_url, self._log)

    async def launch(self) -> None:
        """Starts it, ready or not: a standby is not."""
        with self._log.open("ab") as log:
            self.process = psutil.Popen(self._argv, stdout=log, stderr=log)
        pin(self.process, self._cores)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def cpu_s(self) -> float:
        """User and system time so far."""
        assert self.process is not None
        return float(sum(self.process.cpu_times()[:2]))

    @property
    def rss_mb(self) -> float:
        """Resident memory of the process, MiB (psutil: rss)."""
        assert self.process is not None
        return float(self.process.memory_info().rss) / 2**20


def pin(process: psutil.Process, cores: set[int]) -> None:
    """Keeps a process on its cores, where this machine has them, and ahead of other work, where that is permitted."""
    if cores <= set(os.sched_getaffinity(0)) and len(os.sched_getaffinity(0)) > 1:
        process.cpu_affinity(sorted(cores))
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(10))


async def until_ready(url: str, log: Path) -> None:
    """Polls until the URL answers 200. TimeoutError with the end of the log."""
    ends = time.monotonic() + START_S
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
        while time.monotonic() < ends:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.02)
    raise TimeoutError(f"{url} is not ready: {log.read_text()[-1000:]}")


class Deployment:
    """etcd and control planes with data of their own."""

    def __init__(self, home: Path, planes: int) -> None:
        (client, peer), self._home = free_ports(2), home
        self.endpoint = f"127.0.0.1:{client}"
        etcd, peers = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        argv = [
            find_etcd(), "--name", "scale", "--data-dir", str(home / "etcd"), "--log-level", "error",
            "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peers,
            "--initial-advertise-peer-urls", peers, "--initial-cluster", f"scale={peers}",
        ]  # fmt: skip
        self.etcd = Part(argv, f"{etcd}/health", home / "etcd.log", LOAD_CORES)
        (home / "ticket.key").write_text(secrets.token_hex(32))
        (home / "ticket.key").chmod(0o600)
        self.addresses: list[str] = []
        self.planes = [self._plane(number) for number in range(planes)]

    def _plane(self, number: int) -> Part:
        grpc_port, http_port = free_ports(2)
        self.addresses.append(f"127.0.0.1:{grpc_port}")
        argv = [
            sys.executable, "-m", "agentserving_controlplane", "--listen", self.addresses[-1],
            "--streams-listen", "127.0.0.1:0",
            "--http-port", str(http_port), "--store", "etcd", "--etcd-endpoints", self.endpoint,
            "--etcd-prefix", PREFIX, "--ticket-key-file", str(self._home / "ticket.key"), "--lease-s", str(LEASE_S),
            "--program-idle-s", "86400",
        ]  # fmt: skip
        return Part(argv, f"http://127.0.0.1:{http_port}/readyz", self._home / f"plane-{number}.log", MEASURED_CORES)


async def populate(endpoint: str, programs: int) -> None:
    """Stores live programs, as an earlier leader would have left them."""
    store = EtcdStore((endpoint,), PREFIX)
    plane = ControlPlane(settings(), store, await store.acquire("bench"), lambda error: None)
    plane.commits.start()
    lease = asyncio.create_task(store.keep_lease())
    for number in range(programs):
        opening = OpenRequest(tenant=Tenant("default"), program_id=ProgramId(f"live-{number}"))
        plane.table.programs.open(opening, plane.now())
        if number % 1000 == 999:
            await plane.commits.durable(plane.settle())
    plane.settle()
    await plane.commits.close()
    lease.cancel()
    await asyncio.gather(lease, return_exceptions=True)
    await store.resign()
    await store.close()


@contextlib.asynccontextmanager
async def deployed(programs: int, planes: int = 1) -> AsyncIterator[Deployment]:
    """A running deployment with live programs: its first control plane leads, the others stand by."""
    with tempfile.TemporaryDirectory(prefix="agentserving-scale-") as home:
        deployment = Deployment(Path(home), planes)
        try:
            await deployment.etcd.start()
            await populate(deployment.endpoint, programs)
            await deployment.planes[0].start()
            for standby in deployment.planes[1:]:
                await standby.launch()
            yield deployment
        finally:
            for part in (*deployment.planes, deployment.etcd):
                part.kill()


class Driver:
    """The process of sidecars and gateways."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self) -> dict[str, Any]:
        """The answer to the oldest command. RuntimeError when the process has ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load has ended with an error")
        figures: dict[str, Any] = json.loads(line)
        return figures

    async def do(self, **command: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        await self.send(**command)
        return await self.answer()


@contextlib.asynccontextmanager
async def driving(addresses: list[str], engines: int) -> AsyncIterator[Driver]:
    """Attached engines, and gateways that wait for commands."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.scale_load", ",".join(addresses), str(engines),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    pin(psutil.Process(process.pid), LOAD_CORES)
    try:
        driver = Driver(process)
        await driver.answer()
        yield driver
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def point(plan: Plan, programs: int, engines: int) -> dict[str, Any]:
    """All runs of one number of programs and engines, on a fresh deployment."""
    runs = []
    async with deployed(programs) as deployment, driving(deployment.addresses, engines) as driver:
        plane = deployment.planes[0]
        load = {"do": "load", "programs": programs}
        # Warms up: contexts, caches, connections.
        await driver.do(**load, rate=0, seconds=1.0, seed=0)
        for seed in range(1, plan.runs + 1):
            steady = await measured(plane, driver, **load, rate=RATE, seconds=plan.seconds, seed=seed)
            closed = await measured(plane, driver, **load, rate=0, seconds=plan.seconds, seed=seed)
            runs.append({"steady": steady, "closed": closed})
        memory = {"rss_mb": plane.rss_mb, "etcd_rss_mb": deployment.etcd.rss_mb}
    return {"programs": programs, "engines": engines, **memory, "runs": runs}


async def measured(plane: Part, driver: Driver, **load: Any) -> dict[str, float]:
    """Figures of a load, with the CPU of the control plane."""
    before = plane.cpu_s
    figures = await driver.do(**load)
    figures["cpu_ms"] = 1000 * (plane.cpu_s - before) / figures["calls"]
    figures["calls_per_s"] = figures["calls"] / figures["seconds"]
    return figures


async def outages(plan: Plan) -> dict[str, list[float]]:
    """Seconds without admissions when the only control plane is killed and started again, and when the leader is
    killed while a standby waits. Both include the lease that the dead leader holds."""
    seconds: dict[str, list[float]] = {"recovery_s": [], "failover_s": []}
    async with (
        deployed(plan.outage_programs, planes=2) as deployment,
        driving(deployment.addresses, plan.outage_engines) as driver,
    ):
        leader, standby = deployment.planes
        for _ in range(plan.outages):
            await driver.send(do="outage", programs=plan.outage_programs)
            await asyncio.sleep(0.5)
            leader.kill()
            seconds["failover_s"].append((await driver.answer())["seconds"])
            leader, standby = standby, leader
            await driver.do(do="attached")
            await driver.send(do="outage", programs=plan.outage_programs)
            await asyncio.sleep(0.5)
            leader.kill()
            await leader.launch()
            seconds["recovery_s"].append((await driver.answer())["seconds"])
            await driver.do(do="attached")
            await standby.launch()
            await asyncio.sleep(2.0)
    return seconds


async def run(plan: Plan, console: Console) -> dict[str, Any]:
    """Raw figures of all points and outages."""
    points = []
    for programs, engines in plan.points:
        points.append(await point(plan, programs, engines))
        console.print(row_of(points[-1]))
    ended = await outages(plan) if plan.outages else {}
    return {"rate": RATE, "lease_s": LEASE_S, "points": points, "outages": ended}


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def row_of(measured_point: dict[str, Any]) -> list[str]:
    """A point as a row of the table: medians of its runs."""
    runs = measured_point["runs"]

    def of(kind: str, name: str) -> float:
        return middle([each[kind][name] for each in runs])

    return [
        f"{measured_point['programs']:,}", f"{measured_point['engines']:,}", f"{of('closed', 'calls_per_s'):,.0f}",
        f"{of('steady', 'p50'):.2f}", f"{of('steady', 'p99'):.1f}", f"{of('steady', 'cpu_ms'):.2f}",
        f"{of('closed', 'cpu_ms'):.2f}", f"{measured_point['rss_mb']:.0f}", f"{measured_point['etcd_rss_mb']:.0f}",
    ]  # fmt: skip


def show(raw: dict[str, Any], console: Console) -> None:
    columns = (
        "programs", "engines", "calls/s, closed loop", f"P50 ms at {RATE}/s", "P99 ms", "CPU ms a call",
        "in the closed loop", "MiB", "etcd MiB",
    )  # fmt: skip
    table = Table(*columns, title="control plane: medians")
    for each in raw["points"]:
        table.add_row(*row_of(each))
    console.print(table)
    for name, values in raw["outages"].items():
        console.print(f"{name}: {', '.join(f'{value:.1f}' for value in values)}")
    console.print(bar_table(scale_bars.bars(raw), records.commit_of(records.ROOT)))


@click.command()
@click.option("--quick", is_flag=True, help="Small points, once; writes nothing.")
@click.option("--part", type=click.Choice(list(PARTS)), multiple=True, help="Only this part; several are possible.")
def main(quick: bool, part: tuple[str, ...]) -> None:
    """Measures and prints; writes results/scale-PART.json unless --quick."""
    console = Console(width=160)
    if quick:
        show(asyncio.run(run(QUICK, console)), console)
        return
    for name in part or PARTS:
        raw = asyncio.run(run(PARTS[name], console))
        show(raw, console)
        records.write(f"scale-{name}", raw, records.measured_now())


if __name__ == "__main__":
    main()
