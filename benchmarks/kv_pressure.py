"""Policies on real vLLM when the contexts of live programs are more than the KV cache holds; ``--quick`` to try it.

Two shapes of programs (`kv_programs`): coding agents in small, whose tools work between calls, and chats, which only
wait for each other. Policies are switched at run time on one engine and take turns seed by seed, there and back again,
over the same programs; a ratio compares two runs of one seed. Beside each ratio stands what virtual time says of it,
with constants measured on this engine and its speed fitted to the first policy's run of the seed. The speed of each
run, fitted alike, tells how much of a ratio is the machine's.

Calls of a program here come one after the other, so its longest chain is their sum and `atlas` does what `plas` does:
how far the two are apart is how far equals are on this machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import httpx
from agentserving.contract.policy import PRESETS, Policy
from agentserving.contract.policy_message import policy_to
from agentserving_cli.connection import Services
from agentserving_replay.traces.trace import Program
from agentserving_simulator.virtual.engine import EngineLimits
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Bar, bar
from benchmarks.kv_programs import AGENTS, CHATS, MAX_CONTEXT, Shape, fitted_rate, in_turn, makespan_s, pressure
from benchmarks.local import cluster, engine_totals, until_idle, use_policy
from benchmarks.program_figures import Figures, counted, figures, ratios, told
from benchmarks.validation import (
    BATCH,
    Calibration,
    Caller,
    between,
    calibrate,
    latencies_s,
    limits_of,
    run_real,
    run_virtual,
    service_us,
    simulate,
)

# `program-plas` without retention: the KV of a program whose tool works is anybody's.
RETAINING, FORGETFUL = "program-plas", "program-plas-forgets"
POLICIES = ("fcfs", "mlfq", "plas", "atlas", RETAINING, FORGETFUL)
# 7,680 tokens: four contexts of agents, and one of the longest. CPU attention wants blocks of a multiple of 32.
BLOCK_SIZE, BLOCKS = 32, 240
ENGINE_ARGS = (
    "--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(BLOCKS), "--enable-prefix-caching",
    "--max-model-len", str(MAX_CONTEXT + 500),
)  # fmt: skip
# Contexts of a full batch, when a step's time is measured: all of them fit.
DEEP_TOKENS = BLOCK_SIZE * BLOCKS // BATCH - 200
# Programs a second between which the load is looked for.
LEAST_RATE, MOST_RATE = 0.05, 30.0
# A run ends here, whatever a policy makes of it; what is not ready then counts until then.
LIMIT_S = 120.0
COMPARED = ("latency_s", "latency_p95_s", "token_ms")
HEADINGS = ("policy", "latency s", "p95 s", "token ms", "hits", "preempted", "by vLLM", "unready", "KV needed", "speed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    shapes: tuple[Shape, ...] = (AGENTS, CHATS)
    policies: tuple[str, ...] = POLICIES
    # Further variants of the retaining policy.
    retention_milli: tuple[int, ...] = ()
    seeds: int = 3
    # Of the shapes' pressure, and so of the number of programs.
    share: float = 1.0

    def shape(self, one: Shape) -> Shape:
        """With this plan's share of the pressure."""
        return replace(one, pressure=one.pressure * self.share)


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine under load."""

    stubs: Services
    caller: Caller
    limits: EngineLimits

    @property
    def pool_tokens(self) -> int:
        """What the KV cache holds."""
        return self.limits.num_blocks * self.limits.block_size


def variants(names: Sequence[str], retention_milli: Sequence[int] = ()) -> dict[str, Policy]:
    """Policies by name; `retention_milli` makes further ones of the retaining policy."""
    keeps = PRESETS[RETAINING]
    forgets = replace(keeps, name=FORGETFUL, retention_milli=0)
    more = [replace(keeps, name=f"{RETAINING}-{milli}", retention_milli=milli) for milli in retention_milli]
    return {name: forgets if name == FORGETFUL else PRESETS[name] for name in names} | {p.name: p for p in more}


async def measured_engine(bench: Bench, tries: int = 3) -> Calibration:
    """Constants of the engine. ValueError when the machine is never quiet enough to tell them."""
    await use_policy(bench.stubs, policy_to(PRESETS["fcfs"]))
    for _ in range(tries - 1):
        try:
            return await calibrate(bench.stubs, bench.caller, DEEP_TOKENS)
        except ValueError as error:
            print(f"  {error}", flush=True)
            await until_idle(bench.stubs)
    return await calibrate(bench.stubs, bench.caller, DEEP_TOKENS)


def constants(engine: Calibration) -> dict[str, float]:
    """What a lost context costs beside a step."""
    cost, tokens = engine.cost, MAX_CONTEXT // 3
    prefill_us = tokens * (cost.compute_us_per_token + cost.attention_us_per_pair * tokens / 2)
    step_us = cost.step_us(BATCH, BATCH * DEEP_TOKENS, BATCH)
    return {
        "prefill_us_per_token": round(prefill_us / tokens, 1),
        "step_us": step_us,
        f"steps_of_{tokens}_lost_tokens": round(prefill_us / step_us, 1),
        "overhead_s": round(engine.overhead_s, 4),
        "charged": round(engine.charged, 3),
    }


async def one_run(bench: Bench, policy: Policy, programs: list[Program], tag: str) -> dict[str, Any]:
    """Figures of the programs under a policy."""
    await use_policy(bench.stubs, policy_to(policy))
    before = engine_totals(bench.stubs)
    latencies = await run_real(bench.caller, programs, tag, LIMIT_S)
    await until_idle(bench.stubs)
    counts = counted(before, engine_totals(bench.stubs))
    return {
        "real": seen(bench, programs, latencies, counts),
        "latencies": latencies,
        "counts": counts,
        "served_us": service_us(bench.stubs, [f"{tag}-{program.program_id}" for program in programs]),
    }


def seen(bench: Bench, programs: list[Program], latencies: list[float], counts: dict[str, int]) -> Figures:
    """Figures, and what tells whether the run was as it should be."""
    return {
        **figures(programs, latencies, counts),
        "unready": sum(p.arrival_s + took >= LIMIT_S for p, took in zip(programs, latencies, strict=True)),
        "pressure": pressure(programs, latencies, bench.pool_tokens),
        "makespan_s": makespan_s(programs, latencies),
    }


def virtually(bench: Bench, policy: Policy, programs: list[Program], engine: Calibration) -> Figures:
    """The same figures in virtual time."""
    results, simulated = simulate(programs, policy, engine.cost, bench.limits, engine.overhead_s, LIMIT_S)
    counters = asdict(simulated.engines[0].model.counters)
    return seen(bench, programs, latencies_s(programs, results, LIMIT_S), counters)


def at_its_speed(bench: Bench, row: dict[str, Any], policy: Policy, programs: list[Program],
                 engine: Calibration) -> Calibration:  # fmt: skip
    """The engine as fast as it was in a run; as it was measured when not all of the run's programs were ready."""
    if row["real"]["unready"]:
        return engine
    _, cost = run_virtual(programs, policy, engine, bench.limits, row["served_us"], LIMIT_S)
    return replace(engine, cost=cost)


def predict(bench: Bench, rows: list[dict[str, Any]], policies: dict[str, Policy], programs: list[Program],
            engine: Calibration) -> None:  # fmt: skip
    """Puts into the rows of a seed how fast the engine was in each run, and what virtual time says, at one speed."""
    speeds = {row["policy"]: at_its_speed(bench, row, policies[row["policy"]], programs, engine) for row in rows}
    base = speeds[next(iter(policies))]
    for row in rows:
        row["real"]["speed"] = speeds[row["policy"]].cost.speed
        row["virtual"] = virtually(bench, policies[row["policy"]], programs, base) | {"speed": base.cost.speed}


async def one_shape(bench: Bench, plan: Plan, one: Shape, engine: Calibration) -> tuple[list[Any], Calibration]:
    """(Rows of every policy on every seed, the engine as it is then)."""
    shape, rows = plan.shape(one), []
    policies = variants([name for name in plan.policies if name not in one.without], plan.retention_milli)
    first = next(iter(policies.values()))
    rate = fitted_rate(
        shape, lambda programs: virtually(bench, first, programs, engine)["pressure"], LEAST_RATE, MOST_RATE
    )
    for seed in range(plan.seeds):
        programs, of_seed = shape.programs(seed, rate), []
        print(f"  {shape.name}, seed {seed}: {len(programs)} programs, {rate:.2f}/s", flush=True)
        for name in in_turn(policies, seed):
            row = await one_run(bench, policies[name], programs, f"{shape.name}-{name}-{seed}")
            of_seed.append({"shape": shape.name, "seed": seed, "policy": name, "rate_per_s": rate, **row})
            short = {key: round(value, 2) for key, value in row["real"].items()}
            print(f"    {name}: {short}", flush=True)
        try:
            after = await measured_engine(bench)
        except ValueError:
            after = engine
        predict(bench, of_seed, policies, programs, between(engine, after))
        rows, engine = rows + of_seed, after
    return rows, engine


async def compare(plan: Plan) -> dict[str, Any]:
    """Everything."""
    many = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with (
        cluster(engines=1, max_num_seqs=BATCH, engine_args=ENGINE_ARGS) as (made, stubs),
        httpx.AsyncClient(base_url=made.gateway_url + "/", timeout=900, trust_env=False, limits=many) as client,
    ):
        bench = Bench(stubs, Caller(client, 1), limits_of(stubs))
        engine = await measured_engine(bench)
        raw: dict[str, Any] = {"limits": asdict(bench.limits), "engine": constants(engine), "cost": asdict(engine.cost)}
        print(f"  {bench.pool_tokens} tokens of KV, {raw['engine']}", flush=True)
        raw["rows"] = []
        for shape in plan.shapes:
            rows, engine = await one_shape(bench, plan, shape, engine)
            raw["rows"] += rows
    return raw


def by_seed(raw: dict[str, Any], shape: str, kind: str) -> dict[str, dict[int, Figures]]:
    """Figures by policy and seed; `kind` is "real" or "virtual"."""
    found: dict[str, dict[int, Figures]] = {}
    for row in raw["rows"]:
        if row["shape"] == shape:
            found.setdefault(row["policy"], {})[row["seed"]] = row[kind]
    return found


def bases(policies: Sequence[str]) -> list[tuple[str, str]]:
    """(base, other) of the ratios that are told: all against the first, and who keeps KV against who does not."""
    keep = [name for name in policies if name.startswith(RETAINING) and name != FORGETFUL]
    first = [(policies[0], name) for name in policies[1:]]
    return first + [(FORGETFUL, name) for name in keep if FORGETFUL in policies[1:]]


def ordered(raw: dict[str, Any], shape: str) -> list[str]:
    """Policies of a shape as they are told: seed 0 runs them in that order."""
    return [row["policy"] for row in raw["rows"] if row["shape"] == shape and row["seed"] == 0]


def summarise(raw: dict[str, Any]) -> list[Bar]:
    """How many times the mean program latency of each is that of the one it is compared with."""
    bars = []
    for shape in dict.fromkeys(row["shape"] for row in raw["rows"]):
        real = by_seed(raw, shape, "real")
        for base, other in bases(ordered(raw, shape)):
            values = ratios(real[base], real[other], "latency_s")
            bars.append(
                bar(f"kv-{shape}-{other}-over-{base}", values, ">= 1", "ratio", f"{base}, same engine and programs")
            )
    return bars


def tables(raw: dict[str, Any]) -> list[Table]:
    """Of each shape: the figures of each policy, then the ratios, real and virtual."""
    made = []
    for shape in dict.fromkeys(row["shape"] for row in raw["rows"]):
        real, virtual = by_seed(raw, shape, "real"), by_seed(raw, shape, "virtual")
        names = ("latency_s", "latency_p95_s", "token_ms", "prefix_hits", "preemptions", "preemptions_reactive",
                 "unready", "pressure", "speed")  # fmt: skip
        each = Table(*HEADINGS, title=f"{shape}: real (virtual)")
        against = Table("ratio", *COMPARED, title=f"{shape}: times, real with 95 % interval (virtual)")
        for policy in ordered(raw, shape):
            cells = [
                f"{statistics.fmean(f[name] for f in real[policy].values()):.2f}"
                f" ({statistics.fmean(f[name] for f in virtual[policy].values()):.2f})"
                for name in names
            ]
            each.add_row(policy, *cells)
        for base, other in bases(ordered(raw, shape)):
            cells = []
            for name in COMPARED:
                values, said = (ratios(kind[base], kind[other], name) for kind in (real, virtual))
                cells.append(f"{told(values)} ({statistics.fmean(said):.2f})")
            against.add_row(f"{base} / {other}", *cells)
        made += [each, against]
    return made


def measure(plan: Plan | None = None) -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(compare(plan or Plan()))
    for table in tables(raw):
        Console(width=170).print(table)
    return summarise(raw), raw


@click.command()
@click.option("--quick", is_flag=True, help="One seed, three policies, few agents: 3 to 5 minutes.")
@click.option("--seeds", default=Plan.seeds, show_default=True)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice([AGENTS.name, CHATS.name]),
    help="Default: both; with --quick, agents.",
)
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True)
@click.option("--retention", "retention_milli", multiple=True, type=int, help="Further variants of program-plas.")
def main(quick: bool, seeds: int, shapes: tuple[str, ...], policies: tuple[str, ...],
         retention_milli: tuple[int, ...]) -> None:  # fmt: skip
    """Measures and prints; results are written by `python -m benchmarks.run kv_pressure`."""
    names = shapes or ((AGENTS.name,) if quick else (AGENTS.name, CHATS.name))
    plan = Plan(tuple(shape for shape in (AGENTS, CHATS) if shape.name in names), policies, retention_milli, seeds)
    measure(replace(plan, policies=("fcfs", RETAINING, FORGETFUL), seeds=1, share=0.6) if quick else plan)


if __name__ == "__main__":
    sys.exit(main())
