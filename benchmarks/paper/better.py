"""What is asked of a policy beyond the paper, read off the latency runs. Seeds are paired: they share programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from agentserving_replay.figures import interval

Rows = Sequence[Mapping[str, Any]]
POLICIES = ("vllm-priority", "mlfq", "plas", "atlas", "program-fcfs", "program-plas", "program-atlas", "gittins")
FCFS, PAPER = "vllm-opt", "plas"
# FCFS waits less than this at a rate below saturation.
IDLE_WAIT = 0.06

# workload, programs a second -> policy -> seed -> figures
Points = dict[tuple[str, float], dict[str, dict[int, Mapping[str, float]]]]


def points(rows: Rows) -> Points:
    """Figures by where and by whom."""
    made: Points = {}
    for row in rows:
        run = row["run"]
        at = made.setdefault((run["workload"], run["rate_per_s"]), {})
        at.setdefault(run["contender"], {})[run["seed"]] = row["figures"]
    return made


def ratio(at: Mapping[str, Mapping[int, Mapping[str, float]]], policy: str, base: str, figure: str) -> float:
    """Of the means over seeds."""
    one, other = (statistics.fmean(each[figure] for each in at[name].values()) for name in (policy, base))
    return one / other


def behind(at: Mapping[str, Mapping[int, Mapping[str, float]]], policy: str, base: str, figure: str) -> bool:
    """Longer than `base` by more than noise: the 95 % interval of the seeds' differences lies above zero."""
    seeds = sorted(set(at[policy]) & set(at[base]))
    mean, half = interval([at[policy][seed][figure] - at[base][seed][figure] for seed in seeds])
    # Below a hundredth it is nobody's loss.
    return mean - half > 0.01 * statistics.fmean(at[base][seed][figure] for seed in seeds)


def demands(rows: Rows) -> list[list[str]]:
    """A line a policy: see HEADS."""
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
    """(Sign, programs a second) at which a policy's mean token latency reaches so much, between the rates that were
    run; with sign "<" or ">" the lowest or highest of them, when it is reached below or not at all."""
    rates = sorted(rate for name, rate in where if name == workload and policy in where[(name, rate)])
    means = [statistics.fmean(each["token_ms"] for each in where[(workload, rate)][policy].values()) for rate in rates]
    if means[0] > token_ms:
        return "<", rates[0]
    for (low, slow), (high, fast) in pairwise(zip(rates, means, strict=True)):
        if fast >= token_ms:
            return "", low + (high - low) * (token_ms - slow) / (fast - slow)
    return ">", rates[-1]


def sustained(rows: Rows, times: float = 2.5) -> list[list[str]]:
    """A line a workload: the rate that each policy of SUSTAINED carries at `times` what FCFS has when nobody waits."""
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
SUSTAINED_HEADS = ("workload", "ms a token", *SUSTAINED)


def _idle(at: Mapping[str, Mapping[int, Mapping[str, float]]]) -> bool:
    return statistics.fmean(each["wait_share"] for each in at[FCFS].values()) < IDLE_WAIT


HEADS = (
    "policy", f"worst mean token latency over FCFS's where FCFS waits < {IDLE_WAIT:.0%}",
    "worst p99 of the largest tenth over FCFS's", "behind PLAS by more than noise (token latency)",
)  # fmt: skip
