"""What a program pays far below saturation, against stock vLLM called directly: for the plugin, and for everything."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from agentserving.v1 import types_pb2

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, stock_vllm, use_policy
from benchmarks.policies import BATCH, filling_scale, load, ratios


async def low_load(seeds: int, rate: float, programs: int) -> dict[str, Any]:
    """Stock vLLM called directly, against each policy with the plugin alone and through everything."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("stock", "fcfs", "plas", "plas-direct")}
    async with stock_vllm(BATCH) as (stock, _), cluster(engines=1, max_num_seqs=BATCH) as (made, stubs):
        direct = f"http://127.0.0.1:{made.ports.engines[0].http}/v1"
        scale = await filling_scale(stock, 10 * rate)
        await filling_scale(made.gateway_url, rate)
        for seed in range(seeds):
            for name in random.Random(seed).sample(sorted(runs), len(runs)):
                if name != "stock":
                    await use_policy(stubs, types_pb2.Policy(name=name.partition("-")[0]))
                url = {"stock": stock, "plas-direct": direct}.get(name, made.gateway_url)
                runs[name].append(await load(url, seed, rate, programs, scale))
                print(f"  low load, seed {seed} {name}: {runs[name][-1]}", flush=True)
    return {"runs": runs, "rate_per_s": rate, "programs": programs, "scale": scale}


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(low_load(seeds=5, rate=0.5, programs=10))
    runs = raw["runs"]
    return [
        bar(f"low-load-{name}", ratios(runs[name], runs["stock"]), "<= 1.02", "ratio", "stock vLLM")
        for name in runs
        if name != "stock"
    ], raw
