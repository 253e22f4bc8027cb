"""CPU time of each component per call and per streamed chunk, and the added latency of a long prompt.

Engines are simulated; all other processes are those of a real cluster.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from agentserving_cli.local.cluster import LocalCluster

from benchmarks.bars import Bar, bar
from benchmarks.http_load import Connection, completion, drive
from benchmarks.local import cluster, cpu_seconds, pids

RUNS, CALLS, CHUNKS = 5, 600, 200
COMPONENTS = {"control-plane": ["control-plane"], "gateway": ["gateway", "picker"], "sidecar": ["engine-0-sidecar"]}


async def per_call(url: str, running: LocalCluster, tokens: int, calls: int, name: str) -> dict[str, float]:
    """CPU milliseconds per call of every component, for streamed calls of `tokens` chunks."""
    processes = {component: pids(running, names) for component, names in COMPONENTS.items()}
    before = {component: cpu_seconds(its) for component, its in processes.items()}
    await drive(url, calls, 16, completion(tokens, stream=True), program=name)
    return {component: 1000 * (cpu_seconds(its) - before[component]) / calls for component, its in processes.items()}


async def long_prompt(url: str, rounds: int = 40) -> list[float]:
    """Milliseconds for a 220 KB prompt and one token, on one keep-alive connection."""
    connection = Connection(url)
    body = completion(1, stream=False, prompt="lorem ipsum " * (220_000 // 12))
    times = [1000 * await connection.post("/v1/completions", body) for _ in range(rounds)]
    connection.close()
    return times


async def run() -> dict[str, Any]:
    """CPU per component and latencies of the long prompt, round by round."""
    raw: dict[str, Any] = {"short": [], "long": [], "prompt_direct_ms": [], "prompt_gateway_ms": []}
    flags = ("--speed", "20", "--max-model-len", "131072", "--num-blocks", "100000")
    async with cluster(engine="simulator", engines=1, max_num_seqs=48, engine_args=flags) as (running, _):
        gateway = running.gateway_url
        direct = f"http://127.0.0.1:{running.ports.engines[0].http}/v1"
        await per_call(gateway, running, 2, 100, "warm")
        for index in range(RUNS):
            raw["short"].append(await per_call(gateway, running, 1, CALLS, f"short{index}"))
            raw["long"].append(await per_call(gateway, running, 1 + CHUNKS, 160, f"long{index}"))
            raw["prompt_direct_ms"].append(statistics.median(await long_prompt(direct)))
            raw["prompt_gateway_ms"].append(statistics.median(await long_prompt(gateway)))
    return raw


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    return asyncio.run(run())


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    chunk = [1000 * (b["gateway"] - a["gateway"]) / CHUNKS for a, b in zip(raw["short"], raw["long"], strict=True)]
    extra = [b - a for a, b in zip(raw["prompt_direct_ms"], raw["prompt_gateway_ms"], strict=True)]
    against = "process CPU, user and system"
    return [
        bar("control-plane-cpu-per-call", [r["control-plane"] for r in raw["short"]], "<= 1", "ms", against),
        bar("gateway-cpu-per-call", [r["gateway"] for r in raw["short"]], "<= 1.5", "ms", against),
        bar("gateway-cpu-per-chunk", chunk, "<= 35", "us", against),
        bar("sidecar-cpu-per-call", [r["sidecar"] for r in raw["short"]], "<= 0.5", "ms", against),
        bar("prompt-220kb-extra", extra, "<= 10", "ms", "the same prompt sent to the engine"),
    ]
