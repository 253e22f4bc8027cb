"""The simulator against real CPU vLLM: the same programs on both, latencies compared program by program.

The engine's step is measured first (idle, full, long contexts, prefill), then the trace is run for real through the
gateway and in virtual time with those constants. Prompts are token ids, so that contexts are the same to the token.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import asdict, replace
from typing import Any

import httpx
from agentserving.policy import PRESETS
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import percentile
from agentserving_replay.trace import Call, Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual_engine import EngineLimits

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, engine_totals, use_policy

BATCH = 8
VOCABULARY = 200
# The tiny model reads 8192 tokens.
MAX_CONTEXT = 7500
POLICIES = ("fcfs", "plas")


class Caller:
    """Calls one engine through the gateway with token ids."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self._client, self._dice = client, random.Random(seed)

    def fresh(self, tokens: int) -> list[int]:
        """Tokens that nobody has sent before."""
        return [self._dice.randrange(3, VOCABULARY) for _ in range(tokens)]

    async def call(self, prompt: list[int], output: int, program: str) -> list[int]:
        """The tokens of the answer."""
        body = {
            "model": "tiny", "prompt": prompt, "max_tokens": output, "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        answer = await self._client.post("completions", json=body, headers={"x-agentserving-program-id": program})
        answer.raise_for_status()
        return list(answer.json()["choices"][0]["token_ids"])


async def _per_step(stubs: Any, caller: Caller, calls: int, prompt: int, output: int) -> float:
    """Microseconds of a step in which `calls` calls decode with `prompt` tokens before them."""
    prompts = [caller.fresh(prompt) for _ in range(calls)]
    await asyncio.gather(*(caller.call(p, 1, f"warm-{i}") for i, p in enumerate(prompts)))
    await asyncio.sleep(0.6)  # the last report of the warming is in
    steps = engine_totals(stubs)["steps"]
    began = time.perf_counter()
    await asyncio.gather(*(caller.call(p, output, f"steps-{i}") for i, p in enumerate(prompts)))
    took = time.perf_counter() - began
    await asyncio.sleep(0.6)
    return 1e6 * took / (engine_totals(stubs)["steps"] - steps)


async def calibrate(stubs: Any, caller: Caller) -> tuple[CostModel, float]:
    """This engine's constants, and the seconds that a call takes outside the engine."""
    one = await _per_step(stubs, caller, 1, 32, 300)
    full = await _per_step(stubs, caller, BATCH, 32, 300)
    deep = await _per_step(stubs, caller, BATCH, 4000, 100)
    each = (full - one) / (BATCH - 1)
    kv = max(0.0, deep - full) / (BATCH * (4000 + 50 - 32 - 150))
    prefills = []
    for _ in range(6):
        began = time.perf_counter()
        await caller.call(caller.fresh(6000), 1, "prefill")
        prefills.append(1e6 * (time.perf_counter() - began))
    shorts = []
    for _ in range(20):
        began = time.perf_counter()
        await caller.call(caller.fresh(16), 1, "short")
        shorts.append(1e6 * (time.perf_counter() - began))
    short = statistics.median(shorts)
    compute = (statistics.median(prefills) - short - 2 * one) / (6000 - 16)
    cost = CostModel(
        weights_us=0.0, kv_us_per_token=kv, compute_us_per_token=compute, base_us=one - each, call_us=each - compute
    )
    return cost, max(0.0, short - one - 16 * compute) / 1e6


def scaled(programs: list[Program], scale: float) -> list[Program]:
    """The same conversations with fewer tokens, ended where the context is full."""
    made = []
    for program in programs:
        calls: list[Call] = []
        context = 0
        for call in program.calls:
            new = max(4, round((call.prompt_tokens - call.shared_tokens) * scale))
            output = max(4, round(call.output_tokens * scale))
            if context + new + output > MAX_CONTEXT:
                break
            at = len(calls)
            calls.append(Call(context + new, output, (at - 1,) if at else (), 0.0, at - 1 if at else -1, context))
            context += new + output
        made.append(Program(program.program_id, program.name, program.arrival_s, tuple(calls)))
    return made


async def run_real(caller: Caller, programs: list[Program], tag: str) -> list[float]:
    """Seconds from each program's arrival to its end, on the engine."""
    began = time.perf_counter()

    async def run(program: Program) -> float:
        due = began + program.arrival_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        context: list[int] = []
        for call in program.calls:
            prompt = context + caller.fresh(call.prompt_tokens - len(context))
            context = prompt + await caller.call(prompt, call.output_tokens, f"{tag}-{program.program_id}")
        return time.perf_counter() - due

    return list(await asyncio.gather(*(run(program) for program in programs)))


def run_virtual(
    programs: list[Program], policy: str, cost: CostModel, limits: EngineLimits, overhead_s: float
) -> list[float]:
    """The same in virtual time, in the order of the programs."""
    late = [replace(p, calls=tuple(replace(c, gap_s=overhead_s) for c in p.calls)) for p in programs]
    simulated = VirtualCluster(ClusterSpec(PRESETS[policy], cost, limits))
    simulated.add(late)
    by_arrival = {result.arrival_s: result.latency_s for result in simulated.run()}
    return [by_arrival[program.arrival_s] for program in programs]


async def compare(seeds: int, count: int, rate: float, load: float) -> dict[str, Any]:
    """Latencies of every program, real and virtual."""
    runs: list[dict[str, Any]] = []
    async with (
        cluster(engines=1, max_num_seqs=BATCH) as (made, stubs),
        httpx.AsyncClient(base_url=made.gateway_url + "/", timeout=900, trust_env=False) as client,
    ):
        caller = Caller(client, 1)
        for seed in range(seeds):
            cost, overhead_s = await calibrate(stubs, caller)
            drawn = generate("sharegpt", seed, rate, count)
            token_us = cost.step_us(BATCH, 0, BATCH) / BATCH
            calls = [call for program in drawn for call in program.calls]
            fresh = sum(call.prompt_tokens - call.shared_tokens for call in calls)
            work_us = cost.compute_us_per_token * fresh + token_us * sum(call.output_tokens for call in calls)
            scale = round(load * drawn[-1].arrival_s * 1e6 / work_us, 4)
            programs = scaled(drawn, scale)
            blocks = made_blocks(stubs)
            limits = EngineLimits(max_num_seqs=BATCH, num_blocks=blocks)
            for policy in POLICIES:
                await use_policy(stubs, types_pb2.Policy(name=policy))
                real = await run_real(caller, programs, f"{policy}-{seed}")
                virtual = run_virtual(programs, policy, cost, limits, overhead_s)
                runs.append(
                    {"seed": seed, "policy": policy, "real": real, "virtual": virtual, "scale": scale,
                     "cost": asdict(cost), "overhead_s": overhead_s}
                )  # fmt: skip
                print(f"  seed {seed} {policy}: {told(runs[-1])}", flush=True)
    return {"runs": runs}


def made_blocks(stubs: Any) -> int:
    """KV blocks of the engine."""
    (engine,) = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=10).engines
    return int(engine.capabilities.num_blocks)


def told(run: dict[str, Any]) -> dict[str, float]:
    """Means and p95 of a run, seconds."""
    return {
        f"{kind}_{name}": round(form(run[kind]), 3)
        for name, form in (("mean", statistics.fmean), ("p95", lambda v: percentile(v, 0.95)))
        for kind in ("real", "virtual")
    }


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(compare(seeds=3, count=120, rate=3.0, load=1.1))
    bars = []
    for policy in POLICIES:
        figures = [told(run) for run in raw["runs"] if run["policy"] == policy]
        for name in ("mean", "p95"):
            off = [abs(f[f"virtual_{name}"] / f[f"real_{name}"] - 1) for f in figures]
            bars.append(bar(f"simulator-{policy}-{name}-off", off, "<= 0.1", "ratio", "real CPU vLLM, same programs"))
    return bars, raw
