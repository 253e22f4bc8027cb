"""Requirements on policies beyond the paper, checked against the latency runs. Runs of one seed share programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from agentserving_replay.figures import interval

Rows = Sequence[Mapping[str, Any]]
POLICIES = ("vllm-priority", "mlfq", "plas", "atlas", "program-fcfs", "program-plas", "program-atlas", "gittins")
FCFS, PAPER = "vllm-opt", "plas"
# Below saturation FCFS waits less than this share of the time.
IDLE_WAIT = 0.06

# (workload, programs per second) -> policy -> seed -> figures
Points = dict[tuple[str, float], dict[str, dict[int, Mapping[str, float]]]]


def points(rows: Rows) -> Points:
    """Groups figures by workload and rate, policy and seed."""
    where: Points = {}
    for row in rows:
        run = row["run"]
        at = where.setdefault((run["workload"], run["rate_per_s"]), {})
        at.setdefault(run["contender"], {})[run["seed"]] = row["figures"]
    return where


def ratio(at: Mapping[str, Mapping[int, Mapping[str, float]]], policy: str, base: str, figure: str) -> float:
    """Ratio of two policies' means over seeds."""
    one, other = (statistics.fmean(each[figure] for each in at[name].values()) for name in (policy, base))
    return one / other


def behind(at: Mapping[str, Mapping[int, Mapping[str, float]]], policy: str, base: str, figure: str) -> bool:
    """True when a policy is slower than `base`: the 95 % interval of the seeds' differences lies above 1 % of it."""
    seeds = sorted(set(at[policy]) & set(at[base]))
    mean, half = interval([at[policy][seed][figure] - at[base][seed][figure] for seed in seeds])
    # Differences below one percent do not matter.
    return mean - half > 0.01 * statistics.fmean(at[base][seed][figure] for seed in seeds)


def requirements(rows: Rows) -> list[list[str]]:
    """One line per policy; the columns are HEADS."""
    where = points(rows)
    lines = []
    for policy in POLICIES:
        have = {key: at for key, at in where.items() if {policy, FCFS, PAPER} <= set(at)}
        if not have:
            continue
        idle = [at for at in have.values() if _idle(at)]
        large = {key: ratio(at, policy, FCFS, "large_latency_p99_s") for key, at in have.items()}
        worst = max(large, key=lambda key: large[key])
        losses = [_loss(key, at, policy) for key, at in have.items()]
        lines.append([
            policy,
            f"{max((ratio(at, policy, FCFS, 'token_ms') for at in idle), default=float('nan')):.3f}",
            f"{large[worst]:.2f} ({worst[0]} {worst[1]:g}/s)",
            ", ".join(filter(None, losses)) or ("-" if policy == PAPER else "nowhere"),
        ])  # fmt: skip
    return lines


def _loss(key: tuple[str, float], at: Mapping[str, Mapping[int, Mapping[str, float]]], policy: str) -> str:
    figures = {"mean": "token_ms", "p99": "token_p99_ms"}
    lost = [name for name, figure in figures.items() if behind(at, policy, PAPER, figure)]
    return f"{key[0]} {key[1]:g}/s ({' and '.join(lost)})" if lost else ""


def rate_at(where: Points, workload: str, policy: str, token_ms: float) -> tuple[str, float]:
    """The rate (programs per second) at which a policy's mean token latency reaches `token_ms`, with a sign.

    Interpolates between the rates that were run. The sign is "<" with the lowest rate when that exceeds `token_ms`
    already, ">" with the highest when none does, and empty otherwise.
    """
    rates = sorted(rate for name, rate in where if name == workload and policy in where[(name, rate)])
    means = [statistics.fmean(each["token_ms"] for each in where[(workload, rate)][policy].values()) for rate in rates]
    if means[0] > token_ms:
        return "<", rates[0]
    for (low, slow), (high, fast) in pairwise(zip(rates, means, strict=True)):
        if fast >= token_ms:
            return "", low + (high - low) * (token_ms - slow) / (fast - slow)
    return ">", rates[-1]


def sustained(rows: Rows, times: float = 2.5) -> list[list[str]]:
    """One line per workload: the rate that each policy sustains at `times` the token latency of an idle FCFS engine."""
    where = points(rows)
    lines = []
    for workload in dict.fromkeys(name for name, _ in where):
        lowest = where[(workload, min(rate for name, rate in where if name == workload))]
        if FCFS not in lowest:
            continue
        goal = times * statistics.fmean(each["token_ms"] for each in lowest[FCFS].values())
        base = rate_at(where, workload, FCFS, goal)[1]
        line = [workload, f"{goal:.0f}"]
        for policy in SUSTAINED:
            sign, rate = rate_at(where, workload, policy, goal) if policy in lowest else ("", float("nan"))
            line.append(f"{sign}{rate:.3g} ({sign}{rate / base:.2f}x)" if rate == rate else "-")
        lines.append(line)
    return lines


SUSTAINED = ("vllm", FCFS, *POLICIES, "srpt")
SUSTAINED_HEADS = ("workload", "ms per token", *SUSTAINED)


def _idle(at: Mapping[str, Mapping[int, Mapping[str, float]]]) -> bool:
    return statistics.fmean(each["wait_share"] for each in at[FCFS].values()) < IDLE_WAIT


HEADS = (
    "policy", f"worst mean token latency over FCFS's where FCFS waits < {IDLE_WAIT:.0%}",
    "worst p99 of the largest tenth over FCFS's", "behind PLAS by more than noise (token latency)",
)  # fmt: skip
