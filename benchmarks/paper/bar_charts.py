"""Bar charts of the experiments that compare contenders at single points; `curves` draws latency over rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentserving_replay.figures import interval
from matplotlib import pyplot as plt

from benchmarks.paper.curves import COLOURS, CONTENDER_NAMES

BALANCER_COLOURS = {
    "round_robin": "#999999", "least_used": "#c9a227", "program_locality": "#2b8cbe", "prefix_aware": "#e34a33",
}  # fmt: skip
BALANCER_NAMES = {"program_locality": "Algorithm 2", "prefix_aware": "prefix_aware"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A panel for each value of the runs' fields `panels`, with a bar for each value of `bars`; shorter is better."""

    title: str
    panels: tuple[str, ...]
    bars: tuple[str, ...]
    figure: str
    label: str
    # True for one scale over all panels.
    has_one_scale: bool = False


TOKEN = "response time per token, mean (ms)"
CHARTS = {
    "makespan": Chart(
        title="All programs at once, one A100", panels=("workload",), bars=("contender",), figure="makespan_s",
        label="makespan (s)",
    ),
    "balancers": Chart(
        title="Load balancers under PLAS", panels=("engines", "workload"), bars=("balancer",), figure="token_ms",
        label=TOKEN,
    ),
    "agents": Chart(
        title="Recorded coding agents on 4 engines, by programs per second", panels=("tag", "rate_per_s"),
        bars=("contender", "balancer"), figure="latency_s", label="program latency, mean (s, tools included)",
        has_one_scale=True,
    ),
    "scaling": Chart(
        title="More engines with proportionally more programs", panels=("engines",), bars=("contender",),
        figure="token_ms", label=TOKEN, has_one_scale=True,
    ),
    "bursts": Chart(
        title="Bursty arrivals, one A100", panels=("workload",), bars=("contender",), figure="token_ms", label=TOKEN
    ),
    "gpus": Chart(
        title="Other GPUs; 70B runs on four of them", panels=("gpu", "model"), bars=("contender",), figure="token_ms",
        label=TOKEN,
    ),
    "switches": Chart(
        title="One setting changed (ShareGPT)", panels=("tag",), bars=("contender",), figure="token_ms", label=TOKEN,
        has_one_scale=True,
    ),
}  # fmt: skip
_UNITS = {"engines": " engines", "rate_per_s": "/s"}


def _key(run: dict[str, Any], fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(run[field] for field in fields)


def _words(key: tuple[Any, ...], fields: Sequence[str]) -> str:
    parts = [f"{value}{_UNITS.get(field, '')}" for value, field in zip(key, fields, strict=True) if value != ""]
    return ", ".join(part.replace("1 engines", "1 engine") for part in parts)


def ranked(keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Contenders and balancers in the order of their colours, unchanged runs first, everything else sorted."""
    order = {name: at for at, name in enumerate(("", "as it is", *COLOURS, *BALANCER_COLOURS))}
    return sorted(keys, key=lambda key: [(order.get(part, 99), part) for part in key])


def draw(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes name.png and name.svg."""
    chart = CHARTS[name]
    panels = ranked(list({_key(row["run"], chart.panels) for row in rows}))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    bars = len({_key(row["run"], chart.bars) for row in rows})
    size = (1.6 + 3.1 * columns, 1.1 + lines * (0.9 + 0.28 * bars))
    figure, axes = plt.subplots(
        lines, columns, figsize=size, squeeze=False, layout="constrained", sharex=chart.has_one_scale
    )
    flat = [axis for line in axes for axis in line]
    for axis, panel in zip(flat, panels, strict=False):
        here = [row for row in rows if _key(row["run"], chart.panels) == panel]
        _bars(axis, here, rows if chart.has_one_scale else here, chart)
        axis.set_title(_words(panel, chart.panels), fontsize=10)
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(f"{chart.label}; lower is better; bars over the seeds: 95 % intervals", fontsize=9)
    figure.suptitle(chart.title)
    for form in ("png", "svg"):
        figure.savefig(out / f"{name}.{form}", dpi=110)
    plt.close(figure)


def _range(rows: Sequence[dict[str, Any]], chart: Chart) -> tuple[float, float]:
    """The shortest bar, and the longest with its interval, which counts at most as much as the bar."""
    seeds: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = _key(row["run"], (*chart.panels, *chart.bars))
        seeds.setdefault(key, []).append(row["figures"][chart.figure])
    means = [interval(values) for values in seeds.values()]
    return min(mean for mean, _ in means), max(mean + min(half, mean) for mean, half in means)


def _bars(axis: Any, rows: Sequence[dict[str, Any]], scaled_by: Sequence[dict[str, Any]], chart: Chart) -> None:
    """Draws the panel of `rows` on the scale of `scaled_by`."""
    seeds: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        seeds.setdefault(_key(row["run"], chart.bars), []).append(row["figures"][chart.figure])
    keys = ranked(list(seeds))
    intervals = [interval(seeds[key]) for key in keys]
    means = [mean for mean, _ in intervals]
    colours = [{**COLOURS, **BALANCER_COLOURS}.get(key[0], "#777777") for key in keys]
    halves = [half if half < float("inf") else 0.0 for _, half in intervals]
    least, most = _range(scaled_by, chart)
    is_wide = most > 8 * least
    lower = [min(half, 0.9 * mean) for mean, half in zip(means, halves, strict=True)]
    axis.barh(range(len(keys)), means, color=colours, xerr=[lower, halves], ecolor="#555555", capsize=2)
    known = {**CONTENDER_NAMES, **BALANCER_NAMES}
    names = [", ".join(known.get(part, part) for part in key) for key in keys]
    axis.set_yticks(range(len(keys)), names, fontsize=8)
    axis.invert_yaxis()
    if is_wide:
        axis.set_xscale("log")
    axis.set_xlim(least / 2 if is_wide else 0, most * (4 if is_wide else 1.5))
    for at, (mean, half) in enumerate(zip(means, halves, strict=True)):
        text = f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"
        # The intervals of two seeds may reach far beyond the panel; the number must stay in it.
        label_at = min(mean + half, 1.05 * most) * (1.08 if is_wide else 1.0)
        axis.text(label_at, at, f" {text}", va="center", fontsize=8).set_in_layout(False)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
