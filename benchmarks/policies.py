"""PLAS against FCFS and MLFQ on real vLLM at overload: ShareGPT-like programs, batch 8.

Token latency is a program's latency divided by its output tokens (paper, section 6), averaged over programs. Policies
are switched at run time on one engine and interleaved seed by seed. A program that fails makes the bars missed: the
mean covers only the others.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from benchmarks.bars import Bar, bar
from benchmarks.http_load import completion, drive
from benchmarks.local import cluster, use_policy
from examples.mixed_load import run_mixed_load

BATCH = 8
# Output tokens of a ShareGPT-like program: 6.6 calls of 277.
TOKENS_PER_PROGRAM = 1830
POLICIES = ("fcfs", "mlfq", "plas")


async def filling_scale(url: str, rate: float) -> float:
    """The factor on the paper's token counts at which `rate` programs per second fill the engine.

    Prompts come on top, so the load is somewhat above what the engine can serve.
    """
    await drive(url, BATCH, BATCH, completion(50, stream=False))
    took = await drive(url, BATCH, BATCH, completion(200, stream=False))
    return round(BATCH * 200 / took / (rate * TOKENS_PER_PROGRAM), 3)


async def load(url: str, seed: int, rate: float, programs: int, scale: float) -> dict[str, float]:
    """One run of the load: mean and tail of the token latency (ms per token), and how many programs failed."""
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
    """Every policy on every seed, and one run on an idle system."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    async with cluster(engines=1, max_num_seqs=BATCH) as (running, client):
        scale = await filling_scale(running.gateway_url, rate)
        idle = await load(running.gateway_url, 1, rate / 16, 12, scale)
        for seed in range(seeds):
            for name in POLICIES[seed % len(POLICIES) :] + POLICIES[: seed % len(POLICIES)]:
                await use_policy(client, name)
                runs[name].append(await load(running.gateway_url, seed, rate, programs, scale))
                print(f"  seed {seed} {name}: {runs[name][-1]}", flush=True)
    return {"idle": idle, "runs": runs, "rate_per_s": rate, "programs": programs, "scale": scale}


def ratios(over: list[dict[str, float]], under: list[dict[str, float]]) -> list[float]:
    """Mean token latency of `over` divided by that of `under`, seed by seed."""
    return [a["mean_ms"] / b["mean_ms"] for a, b in zip(over, under, strict=True)]


def summarise(raw: dict[str, Any]) -> list[Bar]:
    """The bars of raw figures."""
    runs, idle = raw["runs"], raw["idle"]
    alone = [run["mean_ms"] / idle["mean_ms"] for run in runs["fcfs"]]
    return [
        bar("overload-fcfs-over-idle", alone, ">= 3", "ratio", "idle system", failed=failures([idle], runs["fcfs"])),
        *(
            bar(
                f"plas-over-{base}", ratios(runs[base], runs["plas"]), goal, "ratio",
                f"{base.upper()}, same engine and seeds", failed=failures(runs[base], runs["plas"]),
            )
            for base, goal in (("fcfs", ">= 2.5"), ("mlfq", ">= 1.5"))
        ),
    ]  # fmt: skip


def failures(*sides: list[dict[str, float]]) -> int:
    """Programs that failed in any of the runs."""
    return int(sum(run["failed"] for runs in sides for run in runs))


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    return asyncio.run(overload(seeds=5, rate=5.0, programs=300))
