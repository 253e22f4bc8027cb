"""The simulator compared with real CPU vLLM: the same programs on both, mean and p95 latencies compared.

First the engine's step is measured (idle, full, long contexts, prefill). Then the programs run on the engine, through
the gateway, and in virtual time with those constants. Prompts are token ids, so contexts agree to the token.

A step is measured from the start of one to the start of the next. The plugin charges calls from a step's scheduling to
its output and leaves out vLLM's work between steps, which is the same for short and long steps: `Calibration.gap_us`.

The bars are in-sample: the engine's speed is fitted to the total service of the run that they compare (`run_virtual`).
They show that the shape of the latencies agrees, not that an unseen run would be predicted as well.
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
from agentserving import Client
from agentserving.contract.policy import PRESETS, Policy
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import percentile
from agentserving_replay.results import ProgramResult
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import generate
from agentserving_simulator.cost_model import CostModel
from agentserving_simulator.virtual.limits import EngineLimits
from msgspec import structs

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, engine_totals, use_policy

BATCH = 8
# The short call that steps are measured with.
SHORT_PROMPT, SHORT_OUTPUT = 32, 300
VOCABULARY = 200
# The tiny model's limit is 8192 tokens.
MAX_CONTEXT = 7500
POLICIES = ("fcfs", "plas")
FITTING_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured constants of an engine."""

    cost: CostModel
    # Seconds of a call outside the engine.
    overhead_s: float
    # Service charged to a call in a full batch, as a share of the total time of the steps.
    charged: float

    def gap_us(self, batch: int) -> float:
        """Part of a step that no call is charged for, computed from the charged share of a full batch's steps."""
        context = SHORT_PROMPT + SHORT_OUTPUT // 2
        return (1 - self.charged) * self.cost.step_us(batch, batch * context, batch)


class Caller:
    """Calls one engine through the gateway with token ids."""

    def __init__(self, client: httpx.AsyncClient, seed: int, model: str = "tiny") -> None:
        self._client, self._dice, self._model = client, random.Random(seed), model
        self._measurements = 0

    def new_programs(self, count: int) -> list[str]:
        """Unused program ids."""
        self._measurements += 1
        return [f"steps-{self._measurements}-{i}" for i in range(count)]

    def fresh(self, tokens: int) -> list[int]:
        """Random tokens, which no cache contains."""
        return [self._dice.randrange(3, VOCABULARY) for _ in range(tokens)]

    async def call(self, prompt: list[int], output: int, program: str) -> list[int]:
        """Sends a call; gives the generated tokens."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": output, "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        response = await self._client.post("completions", json=body, headers={"x-agentserving-program-id": program})
        response.raise_for_status()
        return list(response.json()["choices"][0]["token_ids"])


async def _per_step(client: Client, caller: Caller, calls: int, prompt: int, output: int) -> tuple[float, float]:
    """Microseconds of a step in which `calls` calls decode after `prompt` tokens, and the share that is charged."""
    prompts = [caller.fresh(prompt) for _ in range(calls)]
    await asyncio.gather(*(caller.call(p, 1, f"warm-{i}") for i, p in enumerate(prompts)))
    await asyncio.sleep(0.6)  # the last report of the warm-up has arrived
    steps, programs = engine_totals(client)["steps"], caller.new_programs(calls)
    began = time.perf_counter()
    await asyncio.gather(*(caller.call(p, output, program) for p, program in zip(prompts, programs, strict=True)))
    took_us = 1e6 * (time.perf_counter() - began)
    await asyncio.sleep(0.6)
    return took_us / (engine_totals(client)["steps"] - steps), service_us(client, programs) / (calls * took_us)


def checked(engine: Calibration) -> Calibration:
    """The argument. ValueError when the charged share is implausible: a report is missing, or calls did not overlap."""
    share = engine.charged
    if not 0.3 <= share <= 1.0:
        raise ValueError(f"calls were charged {share:.2f} of their run time: measure again on a quiet machine")
    return engine


async def calibrate(client: Client, caller: Caller, deep_tokens: int = 4000) -> Calibration:
    """This engine's constants; a batch of contexts of `deep_tokens` must fit into its KV cache.

    ValueError when the machine was too noisy to measure them.
    """
    return checked(await constants_of(client, caller, BATCH, deep_tokens))


async def constants_of(client: Client, caller: Caller, batch: int, deep_tokens: int) -> Calibration:
    """Constants of an engine that runs `batch` calls; the charged share is not checked."""
    one, _ = await _per_step(client, caller, 1, SHORT_PROMPT, SHORT_OUTPUT)
    full, charged = await _per_step(client, caller, batch, SHORT_PROMPT, SHORT_OUTPUT)
    deep, _ = await _per_step(client, caller, batch, deep_tokens, 100)
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
    """Median time to the first token after a prompt of `tokens` tokens, microseconds."""
    took = []
    for _ in range(max(3, 30 if tokens < 100 else 6)):
        began = time.perf_counter()
        await caller.call(caller.fresh(tokens), 1, "prefill")
        took.append(1e6 * (time.perf_counter() - began))
    return statistics.median(took)


def next_turn(index: int, context: int, new: int, output: int, gap_s: float = 0.0) -> Call:
    """Call `index` of a conversation: its prompt is the context so far and `new` tokens."""
    return Call(
        prompt_tokens=context + new,
        output_tokens=output,
        parents=(index - 1,) if index else (),
        gap_s=gap_s,
        extends=index - 1 if index else -1,
        shared_tokens=context,
    )


def scaled(programs: list[Program], scale: float, max_context: int = MAX_CONTEXT) -> list[Program]:
    """The same conversations with token counts times `scale`, cut off where the context is full."""
    smaller = []
    for program in programs:
        calls: list[Call] = []
        context = 0
        for call in program.calls:
            new = max(4, round((call.prompt_tokens - call.shared_tokens) * scale))
            output = max(4, round(call.output_tokens * scale))
            if context + new + output > max_context:
                break
            calls.append(next_turn(len(calls), context, new, output))
            context += new + output
        smaller.append(
            Program(
                program_id=program.program_id, name=program.name, arrival_s=program.arrival_s, calls=tuple(calls)
            )
        )  # fmt: skip
    return smaller


async def run_real(caller: Caller, programs: list[Program], tag: str, limit_s: float = math.inf) -> list[float]:
    """Runs the programs on the engine; seconds from each one's arrival to its end.

    A program that is still running `limit_s` after the start is cut off and counts until then.
    """
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


def service_us(client: Client, program_ids: list[str]) -> int:
    """Model-execution time that these programs have received together."""
    return sum(client.get_program(program_id).total_service_us for program_id in program_ids)


def simulate(
    programs: list[Program],
    policy: Policy,
    cost: CostModel,
    limits: EngineLimits,
    overhead_s: float,
    limit_s: float = math.inf,
) -> tuple[list[ProgramResult | None], VirtualCluster]:
    """Runs the programs in virtual time: the result of each, None if not done by `limit_s`, and the cluster."""
    late = [replace(p, calls=tuple(structs.replace(c, gap_s=c.gap_s + overhead_s) for c in p.calls)) for p in programs]
    simulated = VirtualCluster(ClusterSpec(policy=policy, cost=cost, limits=limits))
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
    """Latencies in virtual time, in the order of the programs, and the fitted cost model.

    Under load the engine's steps are slower than in calibration, because client and gateway share its machine. The
    speed is fitted to one figure of the run, the total service charged to its calls; latencies are not used. Steps in
    virtual time follow each other without a gap, so the time that the plugin leaves out is added back: one gap for
    each step of each call, which is one for each of its tokens.
    """
    cost, gaps_us = engine.cost, engine.gap_us(limits.max_num_seqs) * sum(p.output_tokens for p in programs)
    for _ in range(FITTING_ROUNDS):
        results, _ = simulate(programs, policy, cost, limits, engine.overhead_s, limit_s)
        # A higher speed also means fewer concurrent calls, so go half of the way at a time.
        off = sum(result.service_s for result in results if result) * 1e6 / (served_us + gaps_us / cost.speed)
        cost = replace(cost, speed=cost.speed * off**0.5)
    return latencies_s(programs, results, limit_s), cost


def latencies_s(programs: list[Program], results: list[ProgramResult | None], limit_s: float) -> list[float]:
    """Latency of every program; a program that was cut off counts until the limit."""
    return [
        result.latency_s if result else limit_s - program.arrival_s
        for program, result in zip(programs, results, strict=True)
    ]


async def compare(seeds: int, count: int, rate: float, load: float) -> dict[str, Any]:
    """Latencies of every program on the engine and in virtual time."""
    runs: list[dict[str, Any]] = []
    async with (
        cluster(engines=1, max_num_seqs=BATCH) as (running, client),
        httpx.AsyncClient(base_url=running.gateway_url + "/", timeout=900, trust_env=False) as http,
    ):
        caller = Caller(http, 1)
        before = await calibrate(client, caller)
        for seed in range(seeds):
            programs = fitting(before.cost, generate("sharegpt", seed, rate, count), load)
            for policy in POLICIES:
                await use_policy(client, policy)
                real = await run_real(caller, programs, f"{policy}-{seed}")
                # A shared machine's speed drifts: use the mean of the constants before and after the run.
                after = await calibrate(client, caller)
                engine = between(before, after)
                served_us = service_us(client, [f"{policy}-{seed}-{program.program_id}" for program in programs])
                virtual, cost = run_virtual(programs, PRESETS[policy], engine, limits_of(client), served_us)
                runs.append(
                    {"seed": seed, "policy": policy, "real": real, "virtual": virtual, "cost": asdict(cost),
                     "overhead_s": engine.overhead_s, "charged": engine.charged, "served_us": served_us,
                     "output_tokens": sum(program.output_tokens for program in programs),
                     "drift": after.cost.base_us / before.cost.base_us}
                )  # fmt: skip
                before = after
                line = f"drift {runs[-1]['drift']:.2f}, charged {engine.charged:.3f}, speed {cost.speed:.2f}"
                print(f"  seed {seed} {policy}: {means(runs[-1])}, {line}", flush=True)
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
    """The programs, scaled so that their work is `load` times what the engine can do while they arrive."""
    token_us = cost.step_us(BATCH, 0, BATCH) / BATCH
    calls = [call for program in drawn for call in program.calls]
    fresh = sum(call.prompt_tokens - call.shared_tokens for call in calls)
    work_us = cost.compute_us_per_token * fresh + token_us * sum(call.output_tokens for call in calls)
    return scaled(drawn, load * drawn[-1].arrival_s * 1e6 / work_us)


def limits_of(client: Client) -> EngineLimits:
    """Limits that the cluster's only engine reports."""
    (engine,) = client.get_overview().engines
    reported = engine.capabilities
    return EngineLimits(reported.max_num_seqs, block_size=reported.block_size, num_blocks=reported.num_blocks)


def means(run: dict[str, Any]) -> dict[str, float]:
    """Mean and p95 latency of a run, on the engine and in virtual time, seconds."""
    return {
        f"{kind}_{name}": round(form(run[kind]), 3)
        for name, form in (("mean", statistics.fmean), ("p95", lambda v: percentile(v, 0.95)))
        for kind in ("real", "virtual")
    }


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    return asyncio.run(compare(seeds=3, count=120, rate=3.0, load=1.1))


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    against = "real CPU vLLM, same programs; the engine's speed is fitted to the run's total service"
    bars = []
    for policy in POLICIES:
        figures = [means(run) for run in raw["runs"] if run["policy"] == policy]
        for name in ("mean", "p95"):
            off = [abs(f[f"virtual_{name}"] / f[f"real_{name}"] - 1) for f in figures]
            bars.append(bar(f"simulator-{policy}-{name}-off", off, "<= 0.1", "ratio", against, in_sample=True))
    return bars
