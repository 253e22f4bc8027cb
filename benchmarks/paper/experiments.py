"""The runs of each experiment, and the figure of the paper that it reproduces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from agentserving_simulator.cost_model import cost_model

from benchmarks.paper.runs import Run

SEEDS = 5
PAPER = (
    "vllm", "vllm-opt", "vllm-priority", "mlfq", "plas", "atlas", "program-fcfs", "program-plas", "program-atlas",
    "gittins", "srpt",
)  # fmt: skip
# Programs per second on one engine, from idle to where FCFS has no steady state.
RATES = {
    "sharegpt": (0.4, 0.6, 0.8, 1.0, 1.2),
    "bfcl": (0.3, 0.5, 0.7, 0.85, 1.0),
    "lats": (0.05, 0.1, 0.15, 0.19, 0.22),
    "mixed": (0.15, 0.25, 0.3, 0.38, 0.45),
}
FORGETFUL = "program-plas-forgets"
BALANCERS = ("round_robin", "least_used", "program_locality", "prefix_aware")


def latency(workload: str, quick: bool) -> Iterable[Run]:
    """Latency against arrival rate (paper, Fig. 12 and 13), and calls in the engine (Fig. 4)."""
    for rate in RATES[workload][1::3] if quick else RATES[workload]:
        for contender in PAPER:
            for seed in range(2 if quick else SEEDS):
                yield Run(
                    workload=workload, contender=contender, rate_per_s=rate, seed=seed, window_s=200 if quick else 900
                )


def makespan(quick: bool) -> Iterable[Run]:
    """All programs at once (paper, Fig. 16)."""
    counts = {"sharegpt": 400, "bfcl": 300, "lats": 40, "mixed": 100}
    for workload, count in counts.items():
        for contender in PAPER:
            for seed in range(1 if quick else SEEDS):
                yield Run(
                    workload=workload,
                    contender=contender,
                    rate_per_s=1e9,
                    seed=seed,
                    programs=count // 4 if quick else count,
                )


def balancers(quick: bool) -> Iterable[Run]:
    """Load balancers over several engines (paper, Fig. 14)."""
    for engines in (4,) if quick else (4, 8):
        # Eight engines behave as four do at twice the cost, so only the long-tailed workloads run on eight.
        for workload in RATES if engines == 4 else ("sharegpt", "mixed"):
            for balancer in BALANCERS:
                for seed in range(1 if quick else SEEDS):
                    base = Run(
                        workload=workload,
                        contender="plas",
                        rate_per_s=RATES[workload][-2] * engines,
                        seed=seed,
                        window_s=100 if quick else 200,
                    )
                    yield replace(base, engines=engines, balancer=balancer)


def agents(quick: bool) -> Iterable[Run]:
    """Recorded coding agents with contexts of a hundred thousand tokens on four engines (beyond the paper)."""
    chosen = (("plas", BALANCERS), *((name, BALANCERS[2:]) for name in ("vllm-opt", "program-plas", FORGETFUL)))
    for rate in (0.005, 0.01, 0.015, 0.02):
        for contender, balancers in chosen:
            for balancer in balancers:
                for seed in range(1 if quick else SEEDS):
                    base = Run(
                        workload="coding",
                        contender=contender,
                        rate_per_s=rate,
                        seed=seed,
                        window_s=1800 if quick else 3600,
                    )
                    yield replace(base, engines=4, balancer=balancer)
    # An upper bound for balancers and retention: nothing is ever evicted.
    for rate in (0.015, 0.02):
        for balancer in BALANCERS[2:]:
            for seed in range(1 if quick else SEEDS):
                base = Run(
                    workload="coding",
                    contender="plas",
                    rate_per_s=rate,
                    seed=seed,
                    window_s=1800 if quick else 3600,
                    tag="KV of any size",
                )
                yield replace(base, engines=4, balancer=balancer, num_blocks=5_000_000)


def retention(quick: bool) -> Iterable[Run]:
    """KV retention during tool calls where contexts are short."""
    for workload, rates in RATES.items():
        for contender in (FORGETFUL, "program-plas"):
            for seed in range(1 if quick else SEEDS):
                yield Run(
                    workload=workload,
                    contender=contender,
                    rate_per_s=rates[-1],
                    seed=seed,
                    window_s=200 if quick else 900,
                )


def scaling(quick: bool) -> Iterable[Run]:
    """More engines with proportionally more programs (paper, Fig. 15)."""
    for engines in (1, 2, 4, 8):
        for contender in ("vllm-opt", "plas", "program-plas"):
            for seed in range(1 if quick else SEEDS):
                rate = RATES["sharegpt"][-2] * engines
                yield Run(
                    workload="sharegpt",
                    contender=contender,
                    rate_per_s=rate,
                    seed=seed,
                    window_s=100 if quick else 300,
                    engines=engines,
                )


def bursty(quick: bool) -> Iterable[Run]:
    """Arrivals in bursts, at mean rates that one engine sustains well when arrivals are Poisson (beyond the paper)."""
    for workload in ("sharegpt", "mixed"):
        rate = RATES[workload][1]
        for contender in ("vllm-opt", "vllm-priority", "mlfq", "plas", "program-plas", "gittins", "srpt"):
            for seed in range(1 if quick else SEEDS):
                yield Run(
                    workload=workload,
                    contender=contender,
                    rate_per_s=rate,
                    seed=seed,
                    window_s=300 if quick else 1800,
                    bursty=True,
                )


OTHERS = (
    ("h100-80gb", "llama-3.1-8b"),
    ("a100-80gb", "llama-3.1-70b"),
    ("h100-80gb", "llama-3.1-70b"),
    ("h100-80gb", "qwen3-30b-a3b-fp8"),
    ("b200-180gb", "llama-3.1-8b"),
)


def gpus(quick: bool) -> Iterable[Run]:
    """Other GPUs and a larger model, at the load of one A100 with the 8B model scaled by the cost of a token."""
    base = Run(workload="sharegpt", contender="", rate_per_s=0.0, seed=0, window_s=100 if quick else 600)
    for gpu, model in OTHERS:
        here, there = cost_model(gpu, model), cost_model(base.gpu, base.model)
        # Saturation depends on the size of the KV cache and on the time of a step.
        speed = there.decode_us(48, 48 * 4000, 1) / here.decode_us(48, 48 * 4000, 1)
        room = here.num_blocks / there.num_blocks
        rate = round(RATES["sharegpt"][-1] * speed * min(1.0, room), 2)
        for contender in ("vllm-opt", "mlfq", "plas", "program-plas", "auto", "srpt"):
            for seed in range(1 if quick else SEEDS):
                yield replace(base, contender=contender, seed=seed, gpu=gpu, model=model, rate_per_s=rate)


def switches(quick: bool) -> Iterable[Run]:
    """Causes of the gain: prefix cache, KV pressure, slots and host memory, each changed alone."""
    base = Run(
        workload="sharegpt", contender="", rate_per_s=RATES["sharegpt"][-1], seed=0, window_s=300 if quick else 900
    )
    changes = {
        "as it is": {},
        "KV of any size": {"num_blocks": 1_000_000},
        "half the KV": {"num_blocks": 14_000},
        "256 slots": {"max_num_seqs": 256},
        "host memory 400 GiB": {"host_blocks": 200_000},
        "below saturation": {"rate_per_s": RATES["sharegpt"][1]},
    }
    for name, change in changes.items():
        for contender in ("vllm", "vllm-opt", "mlfq", "plas", "program-plas", "srpt"):
            for seed in range(1 if quick else SEEDS):
                yield replace(base, contender=contender, seed=seed, tag=name, **change)  # type: ignore[arg-type]


# (workload, rate, window) of the comparison of the default with its presets, from an empty cluster (decision 0263).
DEFAULT_LOADS = (
    ("map-reduce", 0.3, 300.0),
    ("map-reduce", 1.0, 300.0),
    ("bfcl*1+map-reduce*0.4", 0.3, 300.0),
    ("bfcl*1+map-reduce*0.4", 0.5, 300.0),
    ("sharegpt*1+map-reduce*0.03", 1.1, 300.0),
    ("sharegpt*1+map-reduce*0.1", 1.1, 300.0),
    ("sharegpt*1+map-reduce*0.2", 1.0, 300.0),
    ("map-reduce*1+sharegpt*3", 0.4, 300.0),
    ("map-reduce*1+sharegpt*1", 0.5, 300.0),
    ("map-reduce*1+sharegpt*0.5", 0.8, 300.0),
    ("mixed*1+map-reduce*0.2", 0.4, 300.0),
    ("mixed*1+map-reduce*2.5", 0.2, 300.0),
    ("lats*1+map-reduce*0.25", 0.2, 300.0),
    ("bfcl*1+sharegpt*1", 0.6, 300.0),
    ("bfcl*1+sharegpt*1", 0.8, 300.0),
    ("bfcl*4+lats*1", 0.1, 300.0),
    ("bfcl", 0.85, 400.0),
    ("bfcl", 1.0, 300.0),
    ("sharegpt", 1.2, 300.0),
    ("lats", 0.22, 300.0),
    ("mixed", 0.45, 300.0),
    ("coding", 0.005, 3600.0),
    ("coding", 0.01, 3600.0),
)
# None of these chose anything in the rules of `auto`.
HELD_OUT = range(60, 66)


def default(quick: bool) -> Iterable[Run]:
    """`auto` from an empty cluster, compared with the presets that it could be (beyond the paper)."""
    for workload, rate, window_s in DEFAULT_LOADS[:2] if quick else DEFAULT_LOADS:
        for contender in ("vllm-opt", "program-fcfs", "program-plas", "gittins", "auto"):
            for seed in HELD_OUT[:2] if quick else HELD_OUT:
                yield Run(workload=workload, contender=contender, rate_per_s=rate, seed=seed, window_s=window_s)


EXPERIMENTS: dict[str, Callable[[bool], Iterable[Run]]] = {
    **{f"latency-{workload}": partial(latency, workload) for workload in RATES},
    "makespan": makespan,
    "balancers": balancers,
    "agents": agents,
    "retention": retention,
    "scaling": scaling,
    "switches": switches,
    "bursts": bursty,
    "default": default,
    "gpus": gpus,
}
