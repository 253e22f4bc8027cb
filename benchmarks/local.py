"""Clusters and engines for benchmarks: the same that `agentserving up` starts, and a stock vLLM beside."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_cli.connection import Services, connect, wait_for_policy
from agentserving_cli.local import vllm_env
from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec, engine_env, free_ports, vllm_argv
from agentserving_cli.local.process import Child


@asynccontextmanager
async def cluster(**spec: object) -> AsyncIterator[tuple[LocalCluster, Services]]:
    """A cluster in a directory of its own, and stubs to its control plane."""
    with tempfile.TemporaryDirectory(prefix="agentserving-bench-") as directory:
        async with LocalCluster(ClusterSpec(Path(directory), **spec)) as made:  # type: ignore[arg-type]
            with connect(made.control_plane) as client:
                yield made, Services(client)


async def use_policy(stubs: Services, policy: types_pb2.Policy) -> None:
    """In force on every engine when this returns."""
    request = admin_service_pb2.ApplyPolicyRequest(policy=policy)
    version = stubs.admin.ApplyPolicy(request, timeout=10).policy.version
    await asyncio.to_thread(wait_for_policy, stubs, version)


def engine_totals(stubs: Services) -> dict[str, int]:
    """Counters since boot, over all engines."""
    loads = [
        engine.load for engine in stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=10).engines
    ]
    names = ("steps", "policy_time_us", "prompt_tokens", "cached_tokens", "output_tokens", "promotions", "demotions")
    counted = (*names, "preemptions_proactive", "preemptions_reactive")
    return {name: sum(int(getattr(load, name)) for load in loads) for name in counted}


async def until_idle(stubs: Services, within_s: float = 30.0) -> None:
    """No engine has a call, and the last report is in."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        await asyncio.sleep(0.6)
        overview = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=10)
        if not any(engine.load.running + engine.load.waiting for engine in overview.engines):
            return
    raise TimeoutError(f"an engine has calls after {within_s:.0f} s")


@asynccontextmanager
async def stock_vllm(max_num_seqs: int, core: int = 0) -> AsyncIterator[tuple[str, list[psutil.Process]]]:
    """vLLM with its own scheduler, everything else as in a cluster; gives its base URL and its processes."""
    python = await asyncio.to_thread(vllm_env.ensure_vllm)
    model = await asyncio.to_thread(vllm_env.ensure_model, python)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="agentserving-stock-") as directory:
        home = Path(directory)
        argv = vllm_argv(python, model, port, ClusterSpec(home, max_num_seqs=max_num_seqs))
        at = argv.index("--scheduler-cls")
        del argv[at : at + 2]
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:

            async def ready() -> bool:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
                except httpx.HTTPError:
                    return False

            child = Child("stock", argv, engine_env("stock", home, home / "none", core), home / "log", ready, 300.0)
            (home / "log").touch()
            await child.start()
            try:
                await child.wait_ready()
                yield f"http://127.0.0.1:{port}/v1", tree([child])
            finally:
                await child.stop()


def tree(children: Iterable[Child]) -> list[psutil.Process]:
    """Their processes, and those that they have started."""
    roots = [psutil.Process(child.process.pid) for child in children if child.process is not None]
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def pids(made: LocalCluster, names: Iterable[str]) -> list[psutil.Process]:
    """Processes of components and their children."""
    return tree(made.children[name] for name in names)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time so far."""
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def bind(processes: Iterable[psutil.Process], cores: Iterable[int]) -> None:
    """Holds processes and all their threads to cores."""
    wanted = set(cores) & os.sched_getaffinity(0) or os.sched_getaffinity(0)
    for process in processes:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, wanted)
