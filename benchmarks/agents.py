"""Coding agents in a closed loop on real vLLM with a small KV pool: FCFS against `auto`; ``--quick`` for a trial run.

A small copy of one A100 with Llama 8B under recorded coding sessions (paper/sessions.py). Prompts and the KV pool have
a twentieth of the tokens, so as many contexts fit. The tiny model computes the longest of them about 60 times as fast,
so pauses and answers have a sixtieth. The SLO is that of docs/results, 30 s, in the same proportion: one and a half
times what the longest context takes alone on this engine, measured before the runs.

Policies alternate seed by seed over the same sessions, in an order drawn by the seed. vLLM's own KV
offloading (`--kv-offloading-size`) does not start on a CPU: it supports GPUs only. `agents_host` runs the same with its
connector and another worker (host_kv.py).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import click
import httpx
from agentserving import Client
from agentserving.contract.policy import AUTO, FCFS, Policy
from agentserving_cli.local.layout import cpu_dtype
from agentserving_replay.closed_loop import Loop, LoopFigures, endless
from agentserving_replay.traces.trace import Program
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Bar, bar
from benchmarks.closed_loop import RealLoop, Scale, Streaming
from benchmarks.kv_programs import in_turn
from benchmarks.local import cluster, until_idle, use_policy
from benchmarks.paper.sessions import MAX_PROMPT, coding_agents
from benchmarks.program_figures import with_interval

SCALE = Scale(prompt=1 / 20, output=1 / 60, seconds=1 / 60)
# CPU attention needs blocks of a multiple of 32. 22,208 tokens: a twentieth of one A100's 27,775 blocks of 16.
BLOCK_SIZE, BLOCKS = 32, 694
ENGINE_ARGS = (
    "--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(BLOCKS), "--enable-prefix-caching",
    "--enable-prompt-tokens-details",
)  # fmt: skip
# Keys and values of two layers with four heads of 64 numbers.
KV_BYTES_PER_TOKEN = 2 * 2 * 4 * 64 * {"float32": 4, "bfloat16": 2}[cpu_dtype()]
SLOTS = 48
LONGEST = round(MAX_PROMPT * SCALE.prompt)
SLO_SHARE = 1.5
# Least goodput of `auto`, as a multiple of FCFS's.
GOAL = 1.3
SESSIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`seconds` of a run, of which the first `warmup_s` are not counted."""

    # On the A100, FCFS keeps the SLO with four agents and has collapsed with sixteen (docs/results).
    concurrency: Sequence[int] = (6, 16)
    seeds: Sequence[int] = range(4)
    seconds: float = 50.0
    warmup_s: float = 15.0
    # Of KV in host memory behind the engine's; 0 = none.
    host_tokens: int = 0
    policies: Sequence[Policy] = (FCFS, AUTO)

    @property
    def engine_args(self) -> tuple[str, ...]:
        """Flags of the engine."""
        if not self.host_tokens:
            return ENGINE_ARGS
        tier = {
            "cpu_bytes_to_use": self.host_tokens * KV_BYTES_PER_TOKEN,
            "spec_name": "HostKv",
            "spec_module_path": "benchmarks.host_kv",
        }
        transfer = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": tier}
        return (*ENGINE_ARGS, "--kv-transfer-config", json.dumps(transfer))


def sessions(seed: int) -> list[Program]:
    """Scaled sessions in an order drawn by the seed."""
    return [SCALE.program(program) for program in coding_agents(seed, 1.0, SESSIONS)]


async def alone_s(streaming: Streaming) -> float:
    """Median time to first token of the longest context on an idle engine."""
    took = []
    for number in range(5):
        began = time.perf_counter()
        async for _ in streaming.chunks(streaming.fresh(LONGEST), 1, {"x-agentserving-program-id": f"alone-{number}"}):
            took.append(time.perf_counter() - began)
            break
    return statistics.median(took)


async def compare(plan: Plan) -> dict[str, Any]:
    """Figures of every policy on every seed."""
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with (
        cluster(engines=1, max_num_seqs=SLOTS, engine_args=plan.engine_args) as (running, client),
        httpx.AsyncClient(base_url=running.gateway_url + "/", timeout=900, trust_env=False, limits=unlimited) as http,
    ):
        streaming = Streaming(http, "tiny", 1)
        alone = await alone_s(streaming)
        print(f"  longest context alone: {alone:.2f} s", flush=True)
        raw: dict[str, Any] = {
            "alone_s": alone,
            "seconds": plan.seconds,
            "warmup_s": plan.warmup_s,
            "host_tokens": plan.host_tokens,
            "rows": [],
        }
        for seed, concurrency in product(plan.seeds, plan.concurrency):
            loop = Loop(
                concurrency=concurrency,
                slo_ttft_s=SLO_SHARE * alone,
                duration_s=plan.seconds,
                warmup_s=plan.warmup_s,
            )
            for policy in in_turn(plan.policies, seed):
                raw["rows"].append(await one_run(client, streaming, policy, seed, loop))
                print(f"    {raw['rows'][-1]}", flush=True)
    return raw


async def one_run(client: Client, streaming: Streaming, policy: Policy, seed: int, loop: Loop) -> dict[str, Any]:
    """One closed loop under a policy, its figures, and what `auto` had chosen at its end."""
    await use_policy(client, policy)
    run = RealLoop(client, streaming, f"{policy.name}-{seed}-{loop.concurrency}")
    figures = await run.run(endless(sessions(seed)), loop, loop.warmup_s / 4)
    chosen = [choice.chosen for choice in client.get_policy().choices if choice.application is None]
    await until_idle(client)
    used = chosen[0] if chosen else policy.name
    return {"seed": seed, "policy": policy.name, "chosen": used, "figures": asdict(figures)}


def by_policy(raw: dict[str, Any]) -> dict[int, dict[str, list[LoopFigures]]]:
    """Figures by concurrency and policy, in the order of the seeds."""
    found: dict[int, dict[str, list[LoopFigures]]] = {}
    for row in sorted(raw["rows"], key=lambda row: int(row["seed"])):
        run = LoopFigures(**row["figures"])
        found.setdefault(run.concurrency, {}).setdefault(row["policy"], []).append(run)
    return found


def summarise(raw: dict[str, Any], name: str = "agents") -> list[Bar]:
    """The bars of raw figures. Goodput is compared by difference: FCFS's can be zero."""
    bars = []
    for open_now, runs in by_policy(raw).items():
        pairs = list(zip(runs["fcfs"], runs["auto"], strict=True))
        against = f"FCFS, same engine and sessions, {open_now} agents open"
        gained = [auto.goodput - GOAL * fcfs.goodput for fcfs, auto in pairs]
        bars.append(bar(f"{name}-{open_now}-goodput-above-{GOAL:g}x", gained, ">= 0", "tokens/s", against))
        ratios = [auto.tokens_per_s / fcfs.tokens_per_s for fcfs, auto in pairs]
        bars.append(bar(f"{name}-{open_now}-tokens", ratios, ">= 1", "ratio", against))
    return bars


def table(raw: dict[str, Any]) -> Table:
    """Means over the seeds, with intervals."""
    names = ("tokens_per_s", "goodput", "ttft_p50_s", "ttft_p90_s", "gpu_hits", "calls")
    made = Table("agents", "policy", *names, title=f"SLO: first token within {SLO_SHARE * raw['alone_s']:.2f} s")
    for open_now, each in by_policy(raw).items():
        for policy, runs in each.items():
            cells = (with_interval([getattr(run, name) for run in runs]) for name in names)
            made.add_row(str(open_now), policy, *cells)
    return made


def measure(plan: Plan | None = None) -> Any:
    """Runs the benchmark and prints its table; gives its raw figures."""
    raw = asyncio.run(compare(plan or Plan()))
    Console(width=140).print(table(raw))
    return raw


@click.command()
@click.option("--quick", is_flag=True, help="One seed, 40 s a run: a trial.")
@click.option("--concurrency", multiple=True, type=int, default=Plan().concurrency, show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=tuple(Plan().seeds), show_default=True)
def main(quick: bool, concurrency: tuple[int, ...], seeds: tuple[int, ...]) -> None:
    """Measure and print; `python -m benchmarks.run agents` writes the results as well."""
    plan = Plan(concurrency=concurrency, seeds=seeds)
    measure(replace(plan, seeds=seeds[:1], seconds=40.0, warmup_s=10.0) if quick else plan)


if __name__ == "__main__":
    sys.exit(main())
