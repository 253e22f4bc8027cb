"""Tokens a second through the gateway against the engine called directly, and under our scheduler against vLLM's own.

Real vLLM, batch 16, the engine held to core 0, everything of ours and the client to core 1; both sides interleaved.
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
    """Output tokens a second over three full batches."""
    return 3 * BATCH * TOKENS / await drive(url, 3 * BATCH, BATCH, completion(TOKENS, stream=stream), program=program)


async def run() -> dict[str, Any]:
    """Rates of every round."""
    raw: dict[str, Any] = {name: [] for name in ("direct", "gateway", "stock", "plugin")}
    async with stock_vllm(BATCH) as (stock, processes), cluster(engines=1, max_num_seqs=BATCH) as (made, stubs):
        ours = [name for name in made.children if name != "engine-0"]
        # Both engines whole, their HTTP fronts included: else the one whose front has a core to itself wins.
        bind([*processes, *pids(made, ["engine-0"])], [0])
        bind([*pids(made, ours), psutil.Process()], [1])
        direct = f"http://127.0.0.1:{made.ports.engines[0].http}/v1"
        for url in (stock, direct, made.gateway_url):
            await rate(url, stream=True)
        before = engine_totals(stubs)
        for index in range(RUNS):
            sides = [
                ("direct", direct, True, ""),
                ("gateway", made.gateway_url, True, f"g{index}"),
                ("stock", stock, False, ""),
                ("plugin", direct, False, ""),
            ]
            for name, url, stream, program in sides if index % 2 else reversed(sides):
                raw[name].append(await rate(url, stream=stream, program=program))
        await asyncio.sleep(1)
        after = engine_totals(stubs)
    steps = after["steps"] - before["steps"]
    raw["policy_us_per_step"] = (after["policy_time_us"] - before["policy_time_us"]) / max(1, steps)
    raw["tokens_per_s"] = {name: statistics.fmean(values) for name, values in raw.items() if isinstance(values, list)}
    return raw


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(run())
    through = [b / a for a, b in zip(raw["direct"], raw["gateway"], strict=True)]
    plugin = [b / a for a, b in zip(raw["stock"], raw["plugin"], strict=True)]
    return [
        bar("throughput-through-gateway", through, ">= 0.97", "ratio", "the same engine called directly, streaming"),
        bar("throughput-of-plugin", plugin, ">= 0.99", "ratio", "stock vLLM scheduler"),
    ], raw
