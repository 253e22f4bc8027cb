"""Loads that nobody chose: what `auto` makes of programs of any shape, as a share of FCFS and of program-plas.

Each seed draws one to three classes of programs (calls, tokens, tool times, width, how much all of these vary), their
shares, one to four engines, their KV and host memory, and either a closed loop or Poisson arrivals at a share of what
FCFS serves. The three policies run the same programs in virtual time.

A line per load: of closed loops the ratios of goodput (SLO 30 s) and of tokens a second, more is better; of arrivals
those of mean program latency and of time per token, less is better.
Usage: python -m benchmarks.random_loads [--first SEED] [--count N] [--processes P] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agentserving.contract.ids import ProgramId
from agentserving.contract.policy import AUTO, FCFS, PROGRAM_PLAS, Policy
from agentserving_replay.closed_loop import Loop, run_loop
from agentserving_replay.cluster import ClusterSpec, VirtualCluster
from agentserving_replay.figures import figures
from agentserving_replay.traces.trace import Call, Program
from agentserving_replay.workloads import poisson
from agentserving_simulator.cost_model import cost_model
from agentserving_simulator.virtual.limits import EngineLimits

from benchmarks.paper.contenders import INTERVAL
from benchmarks.records import ROOT, commit_of

POLICIES = {"fcfs": FCFS, "program-plas": PROGRAM_PLAS, "auto": AUTO}
MAX_NUM_SEQS, SLO_TTFT_S = 48, 30.0
LOOP_S, WARMUP_S, WINDOW_S = 1800.0, 450.0, 600.0
# How FCFS's rate is found: a closed loop that fills the slots.
FULL, FULL_S, FULL_WARMUP_S = 64, 900.0, 300.0
MAX_CALLS, MAX_CONTEXT, MAX_OUTPUT, LOOPED = 120, 24_000, 4096, 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A class of programs. Means of log-normal draws, with their sigmas; `width`: calls of a step in parallel."""

    system_tokens: int
    calls: float
    calls_sigma: float
    new_tokens: float
    new_sigma: float
    output_tokens: float
    output_sigma: float
    gap_s: float
    width: int
    # A step may begin with an empty context.
    forgets: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one seed draws. `concurrency` 0: arrivals at `utilisation` of FCFS's rate. 0 blocks: the GPU's own, none."""

    seed: int
    kinds: tuple[Kind, ...]
    shares: tuple[float, ...]
    engines: int
    num_blocks: int
    host_blocks: int
    concurrency: int
    utilisation: float

    def spec(self, policy: Policy) -> ClusterSpec:
        """The cluster under a policy."""
        limits = EngineLimits(MAX_NUM_SEQS, num_blocks=self.num_blocks, host_blocks=self.host_blocks)
        return ClusterSpec(
            policy=replace(policy, decision_interval_steps=INTERVAL),
            cost=cost_model("a100-80gb", "llama-3.1-8b"),
            limits=limits,
            engines=self.engines,
        )


def draw_kind(rng: random.Random) -> Kind:
    """Any class: a chat, a ReAct agent, a fan-out."""
    return Kind(
        system_tokens=int(10 ** rng.uniform(1.5, 3.6)),
        calls=10 ** rng.uniform(0.3, 1.5),
        calls_sigma=rng.choice([0.1, 0.3, 0.6, 1.0, 1.3]),
        new_tokens=10 ** rng.uniform(1.5, 3.4),
        new_sigma=rng.choice([0.3, 0.8]),
        output_tokens=10 ** rng.uniform(1.3, 2.7),
        output_sigma=rng.choice([0.3, 0.8]),
        gap_s=rng.choice([0.0, 0.0, 0.3, 2.0, 8.0, 20.0]),
        width=rng.choice([1, 1, 1, 1, 3, 6, 12, 24]),
        forgets=rng.random() < 0.2,
    )


def draw_load(seed: int) -> Load:
    """The same for the same seed. Classes have about equal parts of the work."""
    rng = random.Random(seed)
    kinds = tuple(draw_kind(rng) for _ in range(rng.choice([1, 1, 2, 2, 3])))
    parts = [rng.uniform(0.3, 1) / (kind.calls * (kind.output_tokens + kind.new_tokens / 8)) for kind in kinds]
    engines, is_closed = rng.choice([1, 1, 1, 2, 4]), rng.random() < 0.5
    return Load(
        seed=seed,
        kinds=kinds,
        shares=tuple(part / sum(parts) for part in parts),
        engines=engines,
        num_blocks=rng.choice([0, 0, 8000]),
        host_blocks=rng.choice([0, 0, 100_000]),
        concurrency=engines * rng.choice([8, 16, 32, 64, 128]) if is_closed else 0,
        utilisation=rng.choice([0.7, 0.85, 0.95, 1.1]),
    )


def _drawn(rng: random.Random, mean: float, sigma: float, most: int) -> int:
    return max(1, min(most, round(mean * math.exp(rng.gauss(0, sigma) - sigma**2 / 2))))


def calls_of(rng: random.Random, kind: Kind) -> tuple[Call, ...]:
    """One program: steps of one or `width` calls, each of which reads what the first call of the step before left."""
    count = _drawn(rng, kind.calls, kind.calls_sigma, MAX_CALLS)
    calls, parents, base, context = list[Call](), tuple[int, ...](), -1, kind.system_tokens
    while len(calls) < count:
        width = min(kind.width if rng.random() < 0.8 else 1, count - len(calls))
        gap_s = rng.expovariate(1 / kind.gap_s) if kind.gap_s and calls else 0.0
        step = range(len(calls), len(calls) + width)
        for number in step:
            new = _drawn(rng, kind.new_tokens, kind.new_sigma, 16_000)
            output = _drawn(rng, kind.output_tokens, kind.output_sigma, MAX_OUTPUT)
            calls.append(
                Call(
                    prompt_tokens=context + new, output_tokens=output, parents=parents, gap_s=gap_s, extends=base,
                    shared_tokens=context, thread=f"t{number - step[0]}",
                )
            )  # fmt: skip
        parents, base = tuple(step), step[0]
        context = calls[base].prompt_tokens + calls[base].output_tokens
        if context > MAX_CONTEXT or (kind.forgets and rng.random() < 0.1):
            context, base = kind.system_tokens, -1
    return tuple(calls)


def programs(load: Load, rate_per_s: float) -> Iterator[Program]:
    """Programs without an end; the same at every rate, but for their arrivals."""
    rng, classes = random.Random(load.seed + 1), range(len(load.kinds))
    for number, arrival_s in enumerate(poisson(random.Random(load.seed + 2), rate_per_s)):
        kind = rng.choices(classes, load.shares)[0]
        yield Program(ProgramId(f"p{number}"), f"class-{kind}", arrival_s, calls_of(rng, load.kinds[kind]))


def _first(load: Load, count: int) -> list[Program]:
    source = programs(load, 1.0)
    return [next(source) for _ in range(count)]


def _closed(load: Load) -> dict[str, tuple[float, float]]:
    """(goodput, tokens a second) of each policy."""
    loop = Loop(concurrency=load.concurrency, slo_ttft_s=SLO_TTFT_S, duration_s=LOOP_S, warmup_s=WARMUP_S)
    looped = _first(load, LOOPED)
    runs = {name: run_loop(load.spec(policy), looped, loop) for name, policy in POLICIES.items()}
    return {name: (run.goodput, run.tokens_per_s) for name, run in runs.items()}


def _open(load: Load) -> dict[str, tuple[float, float]]:
    """(mean program latency, milliseconds per token) of each policy."""
    full = Loop(
        concurrency=FULL * load.engines, slo_ttft_s=SLO_TTFT_S, duration_s=FULL_S, warmup_s=FULL_WARMUP_S
    )  # fmt: skip
    served = run_loop(load.spec(FCFS), _first(load, LOOPED), full).programs / (FULL_S - FULL_WARMUP_S)
    arriving = list[Program]()
    for program in programs(load, max(0.001, served * load.utilisation)):
        if program.arrival_s >= WINDOW_S:
            break
        arriving.append(program)
    found = {}
    for name, policy in POLICIES.items():
        cluster = VirtualCluster(load.spec(policy))
        cluster.add(arriving)
        run = figures(cluster, cluster.run())
        found[name] = (run.latency_s, run.token_ms)
    return found


def measured(seed: int) -> tuple[Load, Mapping[str, tuple[float, float]]]:
    """A seed's load, and the two figures of each policy; none where no program arrives."""
    load = draw_load(seed)
    try:
        return load, _closed(load) if load.concurrency else _open(load)
    except ValueError:
        return load, {}


def shares(found: Mapping[str, tuple[float, float]], base: str) -> tuple[float, float]:
    """`auto`'s figures as shares of another policy's; 1 where both are zero."""
    first, second = (
        one / other if other else (1.0 if not one else math.inf)
        for one, other in zip(found["auto"], found[base], strict=True)
    )
    return first, second


def main() -> None:
    """Prints a line per load; with --out, writes the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for load, found in pool.imap(measured, range(given.first, given.first + given.count)):
            if not found:
                continue
            ratios = {base: shares(found, base) for base in ("fcfs", "program-plas")}
            rows.append({"load": asdict(load), "figures": found, "auto_over": ratios})
            kind = f"closed, {load.concurrency} open" if load.concurrency else f"arrivals at {load.utilisation:g}"
            texts = (f"{base} {first:.3f} {second:.3f}" for base, (first, second) in ratios.items())
            print(f"{load.seed}: {kind}, {load.engines} engines; auto over {', over '.join(texts)}", flush=True)
    if given.out:
        given.out.write_text(json.dumps({"commit": commit_of(ROOT), "rows": rows}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
