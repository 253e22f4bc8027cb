"""The simulator against real CPU vLLM: the same programs on both, latencies compared program by program.

The engine's step is measured first (idle, full, long contexts, prefill), then the trace is run for real through the
gateway and in virtual time with those constants. Prompts are token ids, so that contexts are the same to the token.

A step is measured from one to the next. The plugin charges calls from a step's scheduling to its output and leaves out
what vLLM does between steps, which is the same for a short step and a long one: `Calibration.gap_us`.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import httpx
from agentserving.contract.policy import PRESETS, Policy
from agentserving.v1 import admin_service_pb2, program_service_pb2, types_pb2
from agentserving_replay.cluster import ClusterSpec, ProgramResult, VirtualCluster
from agentserving_replay.figures import percentile
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual.engine import EngineLimits

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, engine_totals, use_policy

BATCH = 8
# A short call, with which steps are measured.
SHORT_PROMPT, SHORT_OUTPUT = 32, 300
VOCABULARY = 200
# The tiny model reads 8192 tokens.
MAX_CONTEXT = 7500
POLICIES = ("fcfs", "plas")
FITTING_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured of an engine."""

    cost: CostModel
    # Seconds that a call takes outside the engine.
    overhead_s: float
    # Service that the plugin charges a call in a full batch, over the time that the steps took in all.
    charged: float

    def gap_us(self, batch: int) -> float:
        """Of a step, what is charged to nobody; told by the share of a full batch's steps that is."""
        context = SHORT_PROMPT + SHORT_OUTPUT // 2
        return (1 - self.charged) * self.cost.step_us(batch, batch * context, batch)


class Caller:
    """Calls one engine through the gateway with token ids."""

    def __init__(self, client: httpx.AsyncClient, seed: int, model: str = "tiny") -> None:
        self._client, self._dice, self._model = client, random.Random(seed), model
        self._measurements = 0

    def new_programs(self, count: int) -> list[str]:
        """Ids that no program has had before."""
        self._measurements += 1
        return [f"steps-{self._measurements}-{i}" for i in range(count)]

    def fresh(self, tokens: int) -> list[int]:
        """Tokens that nobody has sent before."""
        return [self._dice.randrange(3, VOCABULARY) for _ in range(tokens)]

    async def call(self, prompt: list[int], output: int, program: str) -> list[int]:
        """The tokens of the answer."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": output, "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        answer = await self._client.post("completions", json=body, headers={"x-agentserving-program-id": program})
        answer.raise_for_status()
        return list(answer.json()["choices"][0]["token_ids"])


async def _per_step(stubs: Any, caller: Caller, calls: int, prompt: int, output: int) -> tuple[float, float]:
    """(Microseconds of a step in which `calls` calls decode with `prompt` tokens before them, share of it charged)."""
    prompts = [caller.fresh(prompt) for _ in range(calls)]
    await asyncio.gather(*(caller.call(p, 1, f"warm-{i}") for i, p in enumerate(prompts)))
    await asyncio.sleep(0.6)  # the last report of the warming is in
    steps, programs = engine_totals(stubs)["steps"], caller.new_programs(calls)
    began = time.perf_counter()
    await asyncio.gather(*(caller.call(p, output, program) for p, program in zip(prompts, programs, strict=True)))
    took_us = 1e6 * (time.perf_counter() - began)
    await asyncio.sleep(0.6)
    return took_us / (engine_totals(stubs)["steps"] - steps), service_us(stubs, programs) / (calls * took_us)


def checked(engine: Calibration) -> Calibration:
    """The same. ValueError when calls were charged what is no share of their time: a report is missing, or they did
    not run side by side."""
    share = engine.charged
    if not 0.3 <= share <= 1.0:
        raise ValueError(f"calls were charged {share:.2f} of the time that they ran: measure again on a quiet machine")
    return engine


async def calibrate(stubs: Any, caller: Caller, deep_tokens: int = 4000) -> Calibration:
    """This engine's constants; a batch of contexts of `deep_tokens` must fit into its KV cache.

    ValueError when the machine was not quiet enough to tell them.
    """
    return checked(await constants_of(stubs, caller, BATCH, deep_tokens))


async def constants_of(stubs: Any, caller: Caller, batch: int, deep_tokens: int) -> Calibration:
    """Constants of an engine that runs `batch` calls, whatever share of their time those are charged."""
    one, _ = await _per_step(stubs, caller, 1, SHORT_PROMPT, SHORT_OUTPUT)
    full, charged = await _per_step(stubs, caller, batch, SHORT_PROMPT, SHORT_OUTPUT)
    deep, _ = await _per_step(stubs, caller, batch, deep_tokens, 100)
    each = max(0.0, full - one) / (batch - 1)
    kv = max(0.0, deep - full) / (batch * (deep_tokens + 50 - SHORT_PROMPT - SHORT_OUTPUT // 2))
    short, middle, long = [await _answer_us(caller, tokens) for tokens in (16, 1000, 6000)]
    # Seconds of prefill are linear in its tokens and in their pairs.
    pairs = [tokens * tokens / 2 for tokens in (1000, 6000)]
    steps = [0.0, 2 * one]
    (a, b), (c, d) = ((1000 - 16, pairs[0]), (6000 - 16, pairs[1]))
    x, y = middle - short - steps[0], long - short - steps[1]
    attention = max(0.0, (a * y - c * x) / (a * d - b * c))
    compute = max(0.0, (x - attention * b) / a)
    cost = CostModel(
        weights_us=0.0,
        kv_us_per_token=kv,
        compute_us_per_token=compute,
        attention_us_per_pair=attention,
        base_us=one - each,
        call_us=max(0.0, each - compute),
    )
    return Calibration(cost, max(0.0, short - one - 16 * compute) / 1e6, charged)


async def _answer_us(caller: Caller, tokens: int) -> float:
    """Microseconds until one token is there after a prompt of so many, the median of some."""
    took = []
    for _ in range(max(3, 30 if tokens < 100 else 6)):
        began = time.perf_counter()
        await caller.call(caller.fresh(tokens), 1, "prefill")
        took.append(1e6 * (time.perf_counter() - began))
    return statistics.median(took)


def scaled(programs: list[Program], scale: float, max_context: int = MAX_CONTEXT) -> list[Program]:
    """The same conversations with fewer tokens, ended where the context is full."""
    made = []
    for program in programs:
        calls: list[Call] = []
        context = 0
        for call in program.calls:
            new = max(4, round((call.prompt_tokens - call.shared_tokens) * scale))
            output = max(4, round(call.output_tokens * scale))
            if context + new + output > max_context:
                break
            at = len(calls)
            calls.append(Call(context + new, output, (at - 1,) if at else (), 0.0, at - 1 if at else -1, context))
            context += new + output
        made.append(Program(program.program_id, program.name, program.arrival_s, tuple(calls)))
    return made


async def run_real(caller: Caller, programs: list[Program], tag: str, limit_s: float = math.inf) -> list[float]:
    """Seconds from each program's arrival to its end, on the engine; who is not ready `limit_s` after the start has
    ended there, with what it takes until then."""
    began = time.perf_counter()

    async def go(program: Program) -> None:
        context: list[int] = []
        for call in program.calls:
            await asyncio.sleep(call.gap_s)
            prompt = context + caller.fresh(call.prompt_tokens - len(context))
            context = prompt + await caller.call(prompt, call.output_tokens, f"{tag}-{program.program_id}")

    async def run(program: Program) -> float:
        due = began + program.arrival_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        left_s = began + limit_s - time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                await go(program)
        return time.perf_counter() - due

    return list(await asyncio.gather(*(run(program) for program in programs)))


def service_us(stubs: Any, program_ids: list[str]) -> int:
    """Model-execution time that these programs have received, all together."""
    ask = program_service_pb2.GetProgramRequest
    return sum(
        stubs.programs.GetProgram(ask(program_id=each), timeout=10).program.total_service_us for each in program_ids
    )


def simulate(
    programs: list[Program],
    policy: Policy,
    cost: CostModel,
    limits: EngineLimits,
    overhead_s: float,
    limit_s: float = math.inf,
) -> tuple[list[ProgramResult | None], VirtualCluster]:
    """(What became of each program in virtual time, None if not ready at `limit_s`; the cluster that ran them)."""
    late = [replace(p, calls=tuple(replace(c, gap_s=c.gap_s + overhead_s) for c in p.calls)) for p in programs]
    simulated = VirtualCluster(ClusterSpec(policy, cost, limits))
    simulated.add(late)
    by_id = {result.program_id: result for result in simulated.run(limit_s)}
    return [by_id.get(program.program_id) for program in programs], simulated


def run_virtual(
    programs: list[Program],
    policy: Policy,
    engine: Calibration,
    limits: EngineLimits,
    served_us: float,
    limit_s: float = math.inf,
) -> tuple[list[float], CostModel]:
    """(Latencies in virtual time, in the order of the programs; the cost model that they come from).

    Beside the load the engine's steps are slower than in calibration, for client and gateway share its machine. By how
    much is fitted to one figure of the run, the service that all its calls were charged together; latencies are not
    used. Steps in virtual time follow each other at once: what the plugin leaves out between them is put back, one gap
    for each step of each call, that is for each of its tokens.
    """
    cost, gaps_us = engine.cost, engine.gap_us(limits.max_num_seqs) * sum(p.output_tokens for p in programs)
    for _ in range(FITTING_ROUNDS):
        results, _ = simulate(programs, policy, cost, limits, engine.overhead_s, limit_s)
        # More speed means fewer calls beside each other, too: half of the way at a time.
        off = sum(result.service_s for result in results if result) * 1e6 / (served_us + gaps_us / cost.speed)
        cost = replace(cost, speed=cost.speed * off**0.5)
    return latencies_s(programs, results, limit_s), cost


def latencies_s(programs: list[Program], results: list[ProgramResult | None], limit_s: float) -> list[float]:
    """Of every program; of one that was not ready, until the limit."""
    return [
        result.latency_s if result else limit_s - program.arrival_s
        for program, result in zip(programs, results, strict=True)
    ]


async def compare(seeds: int, count: int, rate: float, load: float) -> dict[str, Any]:
    """Latencies of every program, real and virtual."""
    runs: list[dict[str, Any]] = []
    async with (
        cluster(engines=1, max_num_seqs=BATCH) as (made, stubs),
        httpx.AsyncClient(base_url=made.gateway_url + "/", timeout=900, trust_env=False) as client,
    ):
        caller = Caller(client, 1)
        before = await calibrate(stubs, caller)
        for seed in range(seeds):
            programs = fitting(before.cost, generate("sharegpt", seed, rate, count), load)
            for policy in POLICIES:
                await use_policy(stubs, types_pb2.Policy(name=policy))
                real = await run_real(caller, programs, f"{policy}-{seed}")
                # A shared machine's speed drifts: the constants are those before and after, in the middle.
                after = await calibrate(stubs, caller)
                engine = between(before, after)
                served_us = service_us(stubs, [f"{policy}-{seed}-{program.program_id}" for program in programs])
                virtual, cost = run_virtual(programs, PRESETS[policy], engine, limits_of(stubs), served_us)
                runs.append(
                    {"seed": seed, "policy": policy, "real": real, "virtual": virtual, "cost": asdict(cost),
                     "overhead_s": engine.overhead_s, "charged": engine.charged, "served_us": served_us,
                     "output_tokens": sum(program.output_tokens for program in programs),
                     "drift": after.cost.base_us / before.cost.base_us}
                )  # fmt: skip
                before = after
                line = f"drift {runs[-1]['drift']:.2f}, charged {engine.charged:.3f}, speed {cost.speed:.2f}"
                print(f"  seed {seed} {policy}: {told(runs[-1])}, {line}", flush=True)
    return {"runs": runs}


def between(before: Calibration, after: Calibration) -> Calibration:
    """The mean of two calibrations."""
    fields, others = asdict(before.cost), asdict(after.cost)
    cost = {name: (value + others[name]) / 2 for name, value in fields.items() if name != "num_blocks"}
    return Calibration(
        replace(before.cost, **cost),
        (before.overhead_s + after.overhead_s) / 2,
        (before.charged + after.charged) / 2,
    )


def fitting(cost: CostModel, drawn: list[Program], load: float) -> list[Program]:
    """The programs with as few tokens as make them `load` of what the engine can do while they arrive."""
    token_us = cost.step_us(BATCH, 0, BATCH) / BATCH
    calls = [call for program in drawn for call in program.calls]
    fresh = sum(call.prompt_tokens - call.shared_tokens for call in calls)
    work_us = cost.compute_us_per_token * fresh + token_us * sum(call.output_tokens for call in calls)
    return scaled(drawn, load * drawn[-1].arrival_s * 1e6 / work_us)


def limits_of(stubs: Any) -> EngineLimits:
    """The engine's own."""
    (engine,) = stubs.admin.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=10).engines
    able = engine.capabilities
    return EngineLimits(able.max_num_seqs, block_size=able.block_size, num_blocks=able.num_blocks)


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
