"""Pictures of the experiments that are compared bar by bar; `plots` has the curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentserving_replay.figures import interval
from matplotlib import pyplot as plt

from benchmarks.paper.plots import COLOURS, CONTENDER_NAMES

BALANCER_COLOURS = {
    "round_robin": "#999999", "least_used": "#c9a227", "program_locality": "#2b8cbe", "prefix_aware": "#e34a33",
}  # fmt: skip
BALANCER_NAMES = {"program_locality": "Algorithm 2", "prefix_aware": "prefix_aware"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A panel for each value of `panels`, a bar for each value of `bars`, fields of the runs; shorter is better."""

    title: str
    panels: tuple[str, ...]
    bars: tuple[str, ...]
    figure: str
    label: str
    # One scale for all panels.
    shared: bool = False


TOKEN = "response time a token, mean (ms)"
PICTURES = {
    "makespan": Picture("All programs at once, one A100", ("workload",), ("contender",), "makespan_s", "makespan (s)"),
    "balancers": Picture("Load balancers under PLAS", ("engines", "workload"), ("balancer",), "token_ms", TOKEN),
    "agents": Picture(
        "Real coding agents on 4 engines, by programs a second", ("tag", "rate_per_s"), ("contender", "balancer"),
        "latency_s", "program latency, mean (s, tools included)", True,
    ),
    "scaling": Picture("More engines, as many more programs", ("engines",), ("contender",), "token_ms", TOKEN, True),
    "bursts": Picture("Programs in bursts, one A100", ("workload",), ("contender",), "token_ms", TOKEN),
    "gpus": Picture("Other GPUs; 70B runs on four of them", ("gpu", "model"), ("contender",), "token_ms", TOKEN),
    "switches": Picture("One thing changed alone (ShareGPT)", ("tag",), ("contender",), "token_ms", TOKEN, True),
}  # fmt: skip
_UNITS = {"engines": " engines", "rate_per_s": "/s"}


def _key(run: dict[str, Any], fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(run[field] for field in fields)


def _words(key: tuple[Any, ...], fields: Sequence[str]) -> str:
    parts = [f"{value}{_UNITS.get(field, '')}" for value, field in zip(key, fields, strict=True) if value != ""]
    return ", ".join(part.replace("1 engines", "1 engine") for part in parts)


def ranked(keys: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Contenders and balancers in the order of their colours, what is unchanged first, all else as it sorts."""
    order = {name: at for at, name in enumerate(("", "as it is", *COLOURS, *BALANCER_COLOURS))}
    return sorted(keys, key=lambda key: [(order.get(part, 99), part) for part in key])


def draw(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """name.png and name.svg."""
    picture = PICTURES[name]
    panels = ranked(list({_key(row["run"], picture.panels) for row in rows}))
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    bars = len({_key(row["run"], picture.bars) for row in rows})
    size = (1.6 + 3.1 * columns, 1.1 + lines * (0.9 + 0.28 * bars))
    figure, axes = plt.subplots(
        lines, columns, figsize=size, squeeze=False, layout="constrained", sharex=picture.shared
    )
    flat = [axis for line in axes for axis in line]
    for axis, panel in zip(flat, panels, strict=False):
        here = [row for row in rows if _key(row["run"], picture.panels) == panel]
        _bars(axis, here, rows if picture.shared else here, picture)
        axis.set_title(_words(panel, picture.panels), fontsize=10)
    for axis in flat[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel(f"{picture.label}; lower is better; bars over the seeds: 95 % intervals", fontsize=9)
    figure.suptitle(picture.title)
    for form in ("png", "svg"):
        figure.savefig(out / f"{name}.{form}", dpi=110)
    plt.close(figure)


def _range(rows: Sequence[dict[str, Any]], picture: Picture) -> tuple[float, float]:
    """The shortest bar of these rows, and how far the longest reaches with its interval, twice its length at most."""
    seeds: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = _key(row["run"], (*picture.panels, *picture.bars))
        seeds.setdefault(key, []).append(row["figures"][picture.figure])
    told = [interval(values) for values in seeds.values()]
    return min(mean for mean, _ in told), max(mean + min(half, mean) for mean, half in told)


def _bars(axis: Any, rows: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]], picture: Picture) -> None:
    """A panel of `rows`, on the scale that `beside` need."""
    seeds: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        seeds.setdefault(_key(row["run"], picture.bars), []).append(row["figures"][picture.figure])
    keys = ranked(list(seeds))
    told = [interval(seeds[key]) for key in keys]
    means = [mean for mean, _ in told]
    colours = [{**COLOURS, **BALANCER_COLOURS}.get(key[0], "#777777") for key in keys]
    halves = [half if half < float("inf") else 0.0 for _, half in told]
    least, most = _range(beside, picture)
    far = most > 8 * least
    lower = [min(half, 0.9 * mean) for mean, half in zip(means, halves, strict=True)]
    axis.barh(range(len(keys)), means, color=colours, xerr=[lower, halves], ecolor="#555555", capsize=2)
    known = {**CONTENDER_NAMES, **BALANCER_NAMES}
    names = [", ".join(known.get(part, part) for part in key) for key in keys]
    axis.set_yticks(range(len(keys)), names, fontsize=8)
    axis.invert_yaxis()
    if far:
        axis.set_xscale("log")
    axis.set_xlim(least / 2 if far else 0, most * (4 if far else 1.5))
    for at, (mean, half) in enumerate(zip(means, halves, strict=True)):
        text = f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"
        # The intervals of two seeds go far beyond the panel; the figure must not.
        beside_bar = min(mean + half, 1.05 * most) * (1.08 if far else 1.0)
        axis.text(beside_bar, at, f" {text}", va="center", fontsize=8).set_in_layout(False)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
