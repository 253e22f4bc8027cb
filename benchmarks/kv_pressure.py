"""Policies on real vLLM when the contexts of live programs exceed the KV cache; ``--quick`` for a trial run.

Two shapes of programs (`kv_programs`): small coding agents, whose tools run between calls, and chats, which only wait
for each other. Policies are switched at run time on one engine and alternate seed by seed over the same programs; a
ratio compares two runs of one seed. Next to each measured ratio the tables show the ratio in virtual time, with
constants measured on this engine and the speed fitted to the first policy's run of the seed. The speed fitted to each
run shows how much of a ratio is drift of the machine.

A program's calls here are sequential, so its longest chain is their sum and `atlas` equals `plas`: the distance between
the two is the resolution of this machine.
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
from agentserving import Client
from agentserving.contract.policy import PRESETS, Policy
from agentserving_replay.traces.trace import Program
from agentserving_simulator.virtual.limits import EngineLimits
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Bar, bar
from benchmarks.kv_programs import AGENTS, CHATS, MAX_CONTEXT, Shape, fitted_rate, in_turn, makespan_s, pressure
from benchmarks.local import cluster, engine_totals, until_idle, use_policy
from benchmarks.program_figures import Figures, counted, figures, ratios, with_interval
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

# FORGETFUL is `program-plas` without retention: any call may evict the KV of a program in a tool.
RETAINING, FORGETFUL = "program-plas", "program-plas-forgets"
POLICIES = ("fcfs", "mlfq", "plas", "atlas", RETAINING, FORGETFUL)
# 7,680 tokens: four contexts of agents, or one of the longest. CPU attention needs blocks of a multiple of 32.
BLOCK_SIZE, BLOCKS = 32, 240
ENGINE_ARGS = (
    "--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(BLOCKS), "--enable-prefix-caching",
    "--max-model-len", str(MAX_CONTEXT + 500),
)  # fmt: skip
# Context per call when a full batch's step is measured: all of them fit.
DEEP_TOKENS = BLOCK_SIZE * BLOCKS // BATCH - 200
# Bounds of the search for the arrival rate, programs per second.
LEAST_RATE, MOST_RATE = 0.05, 30.0
# Runs are cut off after this time; a program that is still running ("unready") counts until then.
LIMIT_S = 120.0
SEEDS = 3
COMPARED = ("latency_s", "latency_p95_s", "token_ms")
HEADINGS = ("policy", "latency s", "p95 s", "token ms", "hits", "preempted", "by vLLM", "unready", "KV needed", "speed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    shapes: tuple[Shape, ...] = (AGENTS, CHATS)
    policies: tuple[str, ...] = POLICIES
    # Additional variants of the retaining policy.
    retention_milli: tuple[int, ...] = ()
    seeds: int = SEEDS
    # Factor on the shapes' pressure, and so on the number of programs.
    share: float = 1.0

    def shape(self, one: Shape) -> Shape:
        """The shape with this plan's share of the pressure."""
        return replace(one, pressure=one.pressure * self.share)


@dataclass(frozen=True, slots=True)
class Bench:
    """The engine under load."""

    client: Client
    caller: Caller
    limits: EngineLimits

    @property
    def pool_tokens(self) -> int:
        """Capacity of the KV cache."""
        return self.limits.num_blocks * self.limits.block_size


def variants(names: Sequence[str], retention_milli: Sequence[int] = ()) -> dict[str, Policy]:
    """Policies by name, and a variant of the retaining policy for each value of `retention_milli`."""
    retaining = PRESETS[RETAINING]
    forgetful = replace(retaining, name=FORGETFUL, retention_milli=0)
    more = [replace(retaining, name=f"{RETAINING}-{milli}", retention_milli=milli) for milli in retention_milli]
    return {name: forgetful if name == FORGETFUL else PRESETS[name] for name in names} | {p.name: p for p in more}


async def measured_engine(bench: Bench, tries: int = 3) -> Calibration:
    """Constants of the engine. ValueError when the machine is too noisy in every try."""
    await use_policy(bench.client, "fcfs")
    for _ in range(tries - 1):
        try:
            return await calibrate(bench.client, bench.caller, DEEP_TOKENS)
        except ValueError as error:
            print(f"  {error}", flush=True)
            await until_idle(bench.client)
    return await calibrate(bench.client, bench.caller, DEEP_TOKENS)


def constants(engine: Calibration) -> dict[str, float]:
    """The price of a lost context in comparison with a step."""
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
    """Runs the programs to their ends under one policy."""
    await use_policy(bench.client, policy)
    before = engine_totals(bench.client)
    latencies = await run_real(bench.caller, programs, tag, LIMIT_S)
    await until_idle(bench.client)
    counts = counted(before, engine_totals(bench.client))
    return {
        "real": run_figures(bench, programs, latencies, counts),
        "latencies": latencies,
        "counts": counts,
        "served_us": service_us(bench.client, [f"{tag}-{program.program_id}" for program in programs]),
    }


def run_figures(bench: Bench, programs: list[Program], latencies: list[float], counts: dict[str, int]) -> Figures:
    """Figures of a run, with those that show whether the load was as intended."""
    return {
        **figures(programs, latencies, counts),
        "unready": sum(p.arrival_s + took >= LIMIT_S for p, took in zip(programs, latencies, strict=True)),
        "pressure": pressure(programs, latencies, bench.pool_tokens),
        "makespan_s": makespan_s(programs, latencies),
    }


def virtually(bench: Bench, policy: Policy, programs: list[Program], engine: Calibration) -> Figures:
    """The figures of the same run in virtual time."""
    results, simulated = simulate(programs, policy, engine.cost, bench.limits, engine.overhead_s, LIMIT_S)
    counters = asdict(simulated.engines[0].model.counters)
    return run_figures(bench, programs, latencies_s(programs, results, LIMIT_S), counters)


def at_its_speed(bench: Bench, row: dict[str, Any], policy: Policy, programs: list[Program],
                 engine: Calibration) -> Calibration:  # fmt: skip
    """The engine at the speed fitted to a run; at its measured speed when the run was cut off."""
    if row["real"]["unready"]:
        return engine
    _, cost = run_virtual(programs, policy, engine, bench.limits, row["served_us"], LIMIT_S)
    return replace(engine, cost=cost)


def predict(bench: Bench, rows: list[dict[str, Any]], policies: dict[str, Policy], programs: list[Program],
            engine: Calibration) -> None:  # fmt: skip
    """Adds to a seed's rows the fitted speed of each run, and the figures in virtual time, all at one speed."""
    speeds = {row["policy"]: at_its_speed(bench, row, policies[row["policy"]], programs, engine) for row in rows}
    base = speeds[next(iter(policies))]
    for row in rows:
        row["real"]["speed"] = speeds[row["policy"]].cost.speed
        row["virtual"] = virtually(bench, policies[row["policy"]], programs, base) | {"speed": base.cost.speed}


async def one_shape(bench: Bench, plan: Plan, one: Shape, engine: Calibration) -> tuple[list[Any], Calibration]:
    """Rows of every policy on every seed, and the engine's constants after them."""
    shape, rows = plan.shape(one), list[Any]()
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
    """Measures the engine, then every shape."""
    many = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with (
        cluster(engines=1, max_num_seqs=BATCH, engine_args=ENGINE_ARGS) as (running, client),
        httpx.AsyncClient(base_url=running.gateway_url + "/", timeout=900, trust_env=False, limits=many) as http,
    ):
        bench = Bench(client, Caller(http, 1), limits_of(client))
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
    """(base, other) of the ratios: all against the first, and retaining policies against the forgetful one."""
    retaining = [name for name in policies if name.startswith(RETAINING) and name != FORGETFUL]
    first = [(policies[0], name) for name in policies[1:]]
    return first + [(FORGETFUL, name) for name in retaining if FORGETFUL in policies[1:]]


def ordered(raw: dict[str, Any], shape: str) -> list[str]:
    """Policies of a shape in the order of seed 0."""
    return [row["policy"] for row in raw["rows"] if row["shape"] == shape and row["seed"] == 0]


def summarise(raw: dict[str, Any]) -> list[Bar]:
    """The bars of raw figures: mean program latency of each base divided by the other policy's.

    A program of the other policy that was cut off counts as failed: its latency would flatter that policy.
    """
    bars = []
    for shape in dict.fromkeys(row["shape"] for row in raw["rows"]):
        real = by_seed(raw, shape, "real")
        for base, other in bases(ordered(raw, shape)):
            values = ratios(real[base], real[other], "latency_s")
            cut_off = int(sum(run["unready"] for run in real[other].values()))
            against = f"{base}, same engine and programs"
            bars.append(bar(f"kv-{shape}-{other}-over-{base}", values, ">= 1", "ratio", against, failed=cut_off))
    return bars


def tables(raw: dict[str, Any]) -> list[Table]:
    """For each shape the figures of each policy, then the ratios; real and virtual."""
    tables_of_shapes = []
    for shape in dict.fromkeys(row["shape"] for row in raw["rows"]):
        real, virtual = by_seed(raw, shape, "real"), by_seed(raw, shape, "virtual")
        names = ("latency_s", "latency_p95_s", "token_ms", "prefix_hits", "preemptions", "preemptions_reactive",
                 "unready", "pressure", "speed")  # fmt: skip
        each = Table(*HEADINGS, title=f"{shape}: real (virtual)")
        against = Table("ratio", *COMPARED, title=f"{shape}: real, with 95 % interval (virtual)")
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
                measured, simulated = (ratios(kind[base], kind[other], name) for kind in (real, virtual))
                cells.append(f"{with_interval(measured)} ({statistics.fmean(simulated):.2f})")
            against.add_row(f"{base} / {other}", *cells)
        tables_of_shapes += [each, against]
    return tables_of_shapes


def measure(plan: Plan | None = None) -> Any:
    """Runs the benchmark and prints its tables; gives its raw figures."""
    raw = asyncio.run(compare(plan or Plan()))
    for table in tables(raw):
        Console(width=170).print(table)
    return raw


@click.command()
@click.option("--quick", is_flag=True, help="One seed, three policies, few agents: 3 to 5 minutes.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice([AGENTS.name, CHATS.name]),
    help="Default: both; with --quick, agents.",
)
@click.option("--policy", "policies", multiple=True, default=POLICIES, show_default=True)
@click.option("--retention", "retention_milli", multiple=True, type=int, help="Additional variants of program-plas.")
def main(quick: bool, seeds: int, shapes: tuple[str, ...], policies: tuple[str, ...],
         retention_milli: tuple[int, ...]) -> None:  # fmt: skip
    """Measure and print; `python -m benchmarks.run kv_pressure` writes the results as well."""
    names = shapes or ((AGENTS.name,) if quick else (AGENTS.name, CHATS.name))
    plan = Plan(
        shapes=tuple(shape for shape in (AGENTS, CHATS) if shape.name in names), policies=policies,
        retention_milli=retention_milli, seeds=seeds,
    )  # fmt: skip
    measure(replace(plan, policies=("fcfs", RETAINING, FORGETFUL), seeds=1, share=0.6) if quick else plan)


if __name__ == "__main__":
    sys.exit(main())
