"""Clusters and engines for benchmarks: what `agentserving up` starts, and a stock vLLM to compare with."""

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
from agentserving import Client
from agentserving.contract.policy import Policy
from agentserving_cli.local import vllm_env
from agentserving_cli.local.cluster import LocalCluster
from agentserving_cli.local.layout import ClusterSpec, engine_env, vllm_argv
from agentserving_cli.local.ports import free_ports
from agentserving_cli.local.process import Child

COUNTERS = (
    "steps", "policy_time_us", "prompt_tokens", "cached_tokens", "output_tokens", "promotions", "demotions",
    "preemptions_proactive", "preemptions_reactive",
)  # fmt: skip


@asynccontextmanager
async def cluster(**spec: object) -> AsyncIterator[tuple[LocalCluster, Client]]:
    """A running cluster with a state directory of its own, and a client of its control plane."""
    with tempfile.TemporaryDirectory(prefix="agentserving-bench-") as directory:
        async with LocalCluster(ClusterSpec(Path(directory), auth=False, **spec)) as running:  # type: ignore[arg-type]
            with Client(running.control_plane) as client:
                yield running, client


async def use_policy(client: Client, policy: Policy | str, within_s: float = 15.0) -> None:
    """Applies a policy and waits until every engine has acknowledged it. TimeoutError."""
    version = (await asyncio.to_thread(client.set_policy, policy)).version
    ends = time.monotonic() + within_s
    while True:
        applied = await asyncio.to_thread(client.get_policy)
        if applied.version == version and not applied.pending_engine_ids:
            return
        if time.monotonic() > ends:
            raise TimeoutError(f"policy version {version} not acknowledged by {', '.join(applied.pending_engine_ids)}")
        await asyncio.sleep(0.1)


def engine_totals(client: Client) -> dict[str, int]:
    """Counters since boot, summed over all engines."""
    loads = [engine.load for engine in client.get_overview().engines]
    return {name: sum(int(getattr(load, name)) for load in loads if load is not None) for name in COUNTERS}


async def until_idle(client: Client, within_s: float = 30.0) -> None:
    """Waits until no engine has a call and its last report has arrived. TimeoutError."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        # Longer than the interval between two reports of an engine.
        await asyncio.sleep(0.6)
        loads = [engine.load for engine in client.get_overview().engines]
        if not any(load.running + load.waiting for load in loads if load is not None):
            return
    raise TimeoutError(f"an engine still has calls after {within_s:.0f} s")


@asynccontextmanager
async def stock_vllm(max_num_seqs: int, core: int = 0) -> AsyncIterator[tuple[str, list[psutil.Process]]]:
    """vLLM with its own scheduler and otherwise the flags of a cluster's engine: its base URL and its processes."""
    python = await asyncio.to_thread(vllm_env.ensure_vllm)
    model = await asyncio.to_thread(vllm_env.ensure_model, python)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="agentserving-stock-") as directory:
        home = Path(directory)
        argv = vllm_argv(python, model, port, ClusterSpec(home, max_num_seqs=max_num_seqs))
        for ours in ("--scheduler-cls", "--middleware"):
            at = argv.index(ours)
            del argv[at : at + 2]
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:

            async def ready() -> bool:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
                except httpx.HTTPError:
                    return False

            child = Child(
                name="stock",
                argv=argv,
                env=engine_env("stock", home, home / "none", core),
                log=home / "log",
                ready=ready,
                start_bound_s=300.0,
            )
            (home / "log").touch()
            await child.start()
            try:
                await child.wait_ready()
                yield f"http://127.0.0.1:{port}/v1", tree([child])
            finally:
                await child.stop()


def tree(children: Iterable[Child]) -> list[psutil.Process]:
    """The children's processes and all their descendants."""
    roots = [psutil.Process(child.process.pid) for child in children if child.process is not None]
    return [process for root in roots for process in (root, *root.children(recursive=True))]


def pids(running: LocalCluster, names: Iterable[str]) -> list[psutil.Process]:
    """Processes of a cluster's components and their descendants."""
    return tree(running.children[name] for name in names)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time so far."""
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def bind(processes: Iterable[psutil.Process], cores: Iterable[int]) -> None:
    """Pins all threads of the processes to those cores that this machine has; to any core when it has none of them."""
    wanted = set(cores) & os.sched_getaffinity(0) or os.sched_getaffinity(0)
    for process in processes:
        for thread in process.threads():
            os.sched_setaffinity(thread.id, wanted)
