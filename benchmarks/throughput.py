"""Tokens per second through the gateway and directly from the engine, and with our scheduler and vLLM's own.

Real vLLM, batch 16, both sides interleaved. The engines are pinned to core 0; all our processes and the client to
core 1.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

import psutil

from benchmarks.bars import Bar, bar
from benchmarks.http_load import completion, drive
from benchmarks.local import bind, cluster, engine_totals, pids, stock_vllm

BATCH, TOKENS, RUNS = 16, 200, 6


async def rate(url: str, *, stream: bool, program: str = "") -> float:
    """Output tokens per second over three full batches."""
    return 3 * BATCH * TOKENS / await drive(url, 3 * BATCH, BATCH, completion(TOKENS, stream=stream), program=program)


async def run() -> dict[str, Any]:
    """Rates of every round, and the policy's time per step."""
    raw: dict[str, Any] = {name: [] for name in ("direct", "gateway", "stock", "plugin")}
    async with stock_vllm(BATCH) as (stock, processes), cluster(engines=1, max_num_seqs=BATCH) as (running, client):
        ours = [name for name in running.children if name != "engine-0"]
        # Both engines with their HTTP fronts: otherwise the engine whose front has a core to itself wins.
        bind([*processes, *pids(running, ["engine-0"])], [0])
        bind([*pids(running, ours), psutil.Process()], [1])
        direct = f"http://127.0.0.1:{running.ports.engines[0].http}/v1"
        for url in (stock, direct, running.gateway_url):
            await rate(url, stream=True)
        before = engine_totals(client)
        for index in range(RUNS):
            sides = [
                ("direct", direct, True, ""),
                ("gateway", running.gateway_url, True, f"g{index}"),
                ("stock", stock, False, ""),
                ("plugin", direct, False, ""),
            ]
            for name, url, stream, program in sides if index % 2 else reversed(sides):
                raw[name].append(await rate(url, stream=stream, program=program))
        await asyncio.sleep(1)
        after = engine_totals(client)
    steps = after["steps"] - before["steps"]
    raw["policy_us_per_step"] = (after["policy_time_us"] - before["policy_time_us"]) / max(1, steps)
    raw["tokens_per_s"] = {name: statistics.fmean(values) for name, values in raw.items() if isinstance(values, list)}
    return raw


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    return asyncio.run(run())


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    through = [b / a for a, b in zip(raw["direct"], raw["gateway"], strict=True)]
    plugin = [b / a for a, b in zip(raw["stock"], raw["plugin"], strict=True)]
    return [
        bar("throughput-through-gateway", through, ">= 0.97", "ratio", "the same engine called directly, streaming"),
        bar("throughput-of-plugin", plugin, ">= 0.99", "ratio", "stock vLLM scheduler"),
    ]
