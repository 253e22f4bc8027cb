"""Writes tables and pictures of the experiments: docs/results/*.md, *.png, *.svg."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentserving_replay.figures import interval

from benchmarks.paper import bar_charts, curves, requirements, shares
from benchmarks.paper.contenders import CONTENDERS
from benchmarks.paper.runs import Run, bounds_of

Row = dict[str, Any]
Groups = dict[tuple[Any, ...], list[Row]]


def load(out: Path, name: str) -> list[Row]:
    """Rows of all experiments whose names begin with `name`."""
    return [row for file in sorted(out.glob(f"{name}*.json")) for row in json.loads(file.read_text())["rows"]]


def grouped(rows: Sequence[Row], *keys: str) -> Groups:
    """Groups rows by fields of their runs; a group contains the seeds."""
    groups: Groups = defaultdict(list)
    for row in rows:
        groups[tuple(row["run"][key] for key in keys)].append(row)
    return groups


def number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(rows: Sequence[Row], figure: str) -> str:
    """The mean and half of its 95 % interval."""
    mean, half = interval([row["figures"][figure] for row in rows])
    return number(mean) + (f" ± {number(half)}" if half < float("inf") else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _contenders(groups: Groups, at: int) -> list[str]:
    there = {key[at] for key in groups}
    return [name for name in CONTENDERS if name in there]


def _latency(rows: list[Row]) -> str:
    groups = grouped(rows, "workload", "rate_per_s", "contender")
    parts = []
    for workload in dict.fromkeys(key[0] for key in groups):
        parts.append(f"### {workload}\n")
        lines = []
        for rate in sorted({key[1] for key in groups if key[0] == workload}):
            for name in _contenders(groups, 2):
                seeds = groups.get((workload, rate, name))
                if seeds:
                    lines.append([f"{rate:g}", name, *(with_interval(seeds, figure) for figure in FIGURES)])
            lines.append([f"{rate:g}", "lower bound", *_bound(groups[(workload, rate, lines[-1][1])])])
        parts.append(table(["programs/s", "policy", *HEADS], lines))
    return "\n".join(parts)


def _bound(seeds: list[Row]) -> list[str]:
    """Lower bounds for every policy, in the columns of FIGURES."""
    bounds = [bounds_of(Run(**row["run"])) for row in seeds]
    means = {"token_ms": [each.token_ms for each in bounds], "latency_s": [each.latency_s for each in bounds]}
    return [number(interval(means[figure])[0]) if figure in means else "-" for figure in FIGURES]


FIGURES = (
    "token_ms", "token_p95_ms", "token_p99_ms", "latency_s", "latency_p99_s", "large_latency_p99_s", "wait_share",
    "prefix_hits", "calls_in_engine",
)  # fmt: skip
HEADS = (
    "ms per token", "p95", "p99", "program s", "p99", "p99 of the largest", "waiting", "prefix hits", "calls in engine",
)  # fmt: skip


def _by(rows: list[Row], keys: tuple[str, ...], heads: Sequence[str], figures: Sequence[str]) -> str:
    groups = grouped(rows, *keys)
    lines = [
        [*(str(part) for part in key), *(with_interval(groups[key], figure) for figure in figures)]
        for key in bar_charts.ranked(list(groups))
    ]
    return table([*keys, *heads], lines)


def gap_closed(groups: Groups, workload: str, rate: float, name: str) -> float:
    """Share of the distance from FCFS to the clairvoyant order that a policy covers, in mean token latency.

    NaN where there is no distance, or one of the three was not run.
    """
    if not all(groups.get((workload, rate, each)) for each in ("vllm-opt", "srpt", name)):
        return float("nan")
    of = {
        each: interval([row["figures"]["token_ms"] for row in groups[(workload, rate, each)]])[0]
        for each in ("vllm-opt", "srpt", name)
    }
    whole = of["vllm-opt"] - of["srpt"]
    return (of["vllm-opt"] - of[name]) / whole if whole > 0.05 * of["srpt"] else float("nan")


def _gaps(rows: list[Row]) -> str:
    groups = grouped(rows, "workload", "rate_per_s", "contender")
    names = [n for n in _contenders(groups, 2) if n not in ("vllm", "vllm-opt", "srpt")]
    lines = []
    for workload, rate in dict.fromkeys(key[:2] for key in groups):
        shares = [gap_closed(groups, workload, rate, name) for name in names]
        lines.append([workload, f"{rate:g}", *("-" if share != share else f"{share:.0%}" for share in shares)])
    return table(["workload", "programs/s", *names], lines)


def _summary(rows: list[Row]) -> str:
    rates = table(requirements.SUSTAINED_HEADS, requirements.sustained(rows))
    fulfilled = table(requirements.HEADS, requirements.requirements(rows))
    return f"\nPrograms per second at equal token latency:\n\n{rates}\n{fulfilled}"


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "latency": (
        "Latency against arrival rate (Fig. 12, 13, 4)",
        lambda rows: _latency(rows) + "\n" + _gaps(rows) + _summary(rows),
    ),
    "makespan": (
        "All programs at once (Fig. 16)",
        lambda rows: _by(rows, ("workload", "contender"), ["makespan s", "ms per token"], ["makespan_s", "token_ms"]),
    ),
    "balancers": (
        "Load balancers (Fig. 14)",
        lambda rows: _by(
            rows, ("workload", "engines", "balancer"), ["ms per token", "p99", "program s", "prefix hits"],
            ["token_ms", "token_p99_ms", "latency_s", "prefix_hits"],
        ),
    ),
    "agents": (
        "Recorded coding agents, 4 engines",
        lambda rows: _by(
            rows, ("tag", "rate_per_s", "contender", "balancer"),
            ["ms per token", "p99", "program s", "p99", "p99 of the largest", "prefix hits"],
            ["token_ms", "token_p99_ms", "latency_s", "latency_p99_s", "large_latency_p99_s", "prefix_hits"],
        ),
    ),
    "retention": (
        "KV retention during tool calls, where contexts are short",
        lambda rows: _by(
            rows, ("workload", "contender"), ["ms per token", "p99", "program s", "p99 of the largest", "prefix hits"],
            ["token_ms", "token_p99_ms", "latency_s", "large_latency_p99_s", "prefix_hits"],
        ),
    ),
    "scaling": (
        "More engines (Fig. 15)",
        lambda rows: _by(
            rows, ("engines", "contender"), ["programs", "ms per token", "tokens/s"],
            ["programs", "token_ms", "tokens_per_s"],
        ),
    ),
    "bursts": (
        "Bursty arrivals",
        lambda rows: _by(
            rows, ("workload", "contender"), ["ms per token", "p99", "program s", "p99", "p99 of the largest"],
            ["token_ms", "token_p99_ms", "latency_s", "latency_p99_s", "large_latency_p99_s"],
        ),
    ),
    "gpus": (
        "Other GPUs, and a model on four GPUs",
        lambda rows: _by(
            rows, ("gpu", "model", "rate_per_s", "contender"), ["ms per token", "p99", "program s", "prefix hits"],
            ["token_ms", "token_p99_ms", "latency_s", "prefix_hits"],
        ),
    ),
    "default": (
        "The default policy from an empty cluster, as a share of FCFS: mean program latency, then time per token",
        lambda rows: table(shares.HEADS, shares.lines(rows)),
    ),
    "switches": (
        "Causes of the gain",
        lambda rows: _by(
            rows, ("tag", "contender"), ["ms per token", "program s", "prefix hits", "recomputed"],
            ["token_ms", "latency_s", "prefix_hits", "recomputed"],
        ),
    ),
}  # fmt: skip


def measured_at(out: Path) -> str:
    """Which experiments were run at which commit."""
    commits: dict[str, list[str]] = defaultdict(list)
    for file in sorted(out.glob("*.json")):
        document = json.loads(file.read_text())
        commits[document.get("commit", "unknown")].append(f"{file.stem}{' (quick)' if document.get('quick') else ''}")
    lines = [f"- at `{commit}`: {', '.join(names)}" for commit, names in commits.items()]
    return "\n".join(["Measured:\n", *lines, ""])


def write(out: Path) -> None:
    """Writes every section that has results."""
    parts = [
        "# Results in virtual time\n",
        "Written by `make paper`; intervals are 95 % over seeds.\n",
        measured_at(out),
    ]
    parts += [f"- **{each.name}**: {each.about}" for each in CONTENDERS.values()]
    for name, (title, form) in SECTIONS.items():
        rows = load(out, name)
        if rows:
            parts += [f"\n## {title}\n", form(rows)]
            if name in bar_charts.CHARTS:
                bar_charts.draw(out, name, rows)
    (out / "tables.md").write_text("\n".join(parts))
    curves.draw(out, load(out, "latency"))
