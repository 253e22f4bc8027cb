"""PLAS against FCFS and MLFQ on real vLLM at overload: ShareGPT-like programs, batch 8.

Token latency is a program's latency by its output tokens (paper, section 6), the mean over programs. Policies are
switched at run time on one engine and interleaved seed by seed.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from agentserving.v1 import types_pb2

from benchmarks.bars import Bar, bar
from benchmarks.http_load import completion, drive
from benchmarks.local import cluster, use_policy
from examples.mixed_load import run_mixed_load

BATCH = 8
# Output tokens of a ShareGPT-like program: 6.6 calls of 277.
TOKENS_PER_PROGRAM = 1830
POLICIES = ("fcfs", "mlfq", "plas")


async def filling_scale(url: str, rate: float) -> float:
    """Of the paper's token counts: with it, `rate` programs a second bring what a full engine makes, and prompts."""
    await drive(url, BATCH, BATCH, completion(50, stream=False))
    took = await drive(url, BATCH, BATCH, completion(200, stream=False))
    return round(BATCH * 200 / took / (rate * TOKENS_PER_PROGRAM), 3)


async def load(url: str, seed: int, rate: float, programs: int, scale: float) -> dict[str, float]:
    """One run of the load: its mean and tail token latency, milliseconds a token."""
    results = await run_mixed_load(
        url, "tiny", programs=programs, rate_per_s=rate, seed=seed, scale=scale, shapes=("chatbot",)
    )
    good = [r for r in results if not r.failed]
    per_token = sorted(1000 * r.latency_s / max(1, r.output_tokens) for r in good)
    return {
        "mean_ms": statistics.fmean(per_token),
        "p50_ms": statistics.median(per_token),
        "p95_ms": per_token[int(0.95 * (len(per_token) - 1))],
        "program_mean_s": statistics.fmean(r.latency_s for r in good),
        "makespan_s": max(r.arrival_s + r.latency_s for r in results),
        "failed": float(len(results) - len(good)),
    }


async def overload(seeds: int, rate: float, programs: int) -> dict[str, Any]:
    """Every policy on every seed, and an idle run."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    async with cluster(engines=1, max_num_seqs=BATCH) as (made, stubs):
        scale = await filling_scale(made.gateway_url, rate)
        idle = await load(made.gateway_url, 1, rate / 16, 12, scale)
        for seed in range(seeds):
            for name in POLICIES[seed % len(POLICIES) :] + POLICIES[: seed % len(POLICIES)]:
                await use_policy(stubs, types_pb2.Policy(name=name))
                runs[name].append(await load(made.gateway_url, seed, rate, programs, scale))
                print(f"  seed {seed} {name}: {runs[name][-1]}", flush=True)
    return {"idle": idle, "runs": runs, "rate_per_s": rate, "programs": programs, "scale": scale}


def ratios(over: list[dict[str, float]], under: list[dict[str, float]]) -> list[float]:
    """Seed by seed, of the mean token latency."""
    return [a["mean_ms"] / b["mean_ms"] for a, b in zip(over, under, strict=True)]


def summarise(raw: dict[str, Any]) -> list[Bar]:
    """Bars of an overload."""
    runs, unit, idle = raw["runs"], "ratio", raw["idle"]["mean_ms"]
    return [
        bar("overload-fcfs-over-idle", [r["mean_ms"] / idle for r in runs["fcfs"]], ">= 3", unit, "idle system"),
        bar("plas-over-fcfs", ratios(runs["fcfs"], runs["plas"]), ">= 2.5", unit, "FCFS, same engine and seeds"),
        bar("plas-over-mlfq", ratios(runs["mlfq"], runs["plas"]), ">= 1.5", unit, "MLFQ, same engine and seeds"),
    ]


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(overload(seeds=5, rate=5.0, programs=300))
    return summarise(raw), raw
