"""Latency over arrival rate, and the colours and names of contenders in all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from agentserving_replay.figures import interval

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {
    "vllm": "#999999", "vllm-opt": "#333333", "vllm-priority": "#d6679e", "program-fcfs": "#c9a227", "mlfq": "#8c6bb1",
    "plas": "#2b8cbe", "atlas": "#41ae76", "program-plas": "#e34a33", "program-atlas": "#fc8d59", "gittins": "#1a1a8c",
    "srpt": "#bdbdbd", "program-plas-forgets": "#f4a582",
}  # fmt: skip
# Names of contenders for readers of the pictures alone.
CONTENDER_NAMES = {
    "vllm": "vLLM, no prefix cache", "vllm-opt": "vLLM (FCFS)", "vllm-priority": "vLLM, priority = service",
    "plas": "PLAS (paper)", "atlas": "ATLAS (paper)", "mlfq": "MLFQ", "srpt": "SRPT (clairvoyant)",
    "program-plas-forgets": "program-plas, forgets",
}  # fmt: skip
PANELS = (("token_ms", "token latency, mean (ms)"), ("token_p99_ms", "token latency, p99 (ms)"))


def draw(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes latency.png and .svg: one column per workload, the mean above the p99."""
    if not rows:
        return
    workloads = list(dict.fromkeys(row["run"]["workload"] for row in rows))
    figure, axes = plt.subplots(2, len(workloads), figsize=(4.2 * len(workloads), 7), squeeze=False, sharex="col")
    for column, workload in enumerate(workloads):
        here = [row for row in rows if row["run"]["workload"] == workload]
        for line, (key, title) in enumerate(PANELS):
            panel = axes[line][column]
            _curves(panel, here, key)
            panel.set_yscale("log")
            panel.grid(alpha=0.25, which="both")
            if not column:
                panel.set_ylabel(title)
            if not line:
                panel.set_title(workload)
            else:
                panel.set_xlabel("programs per second")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=-(-len(names) // 2), frameon=False)
    figure.suptitle("Response time per token: Llama 3.1 8B on one A100, virtual time, 95 % intervals")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    for form in ("png", "svg"):
        figure.savefig(out / f"latency.{form}", dpi=110)
    plt.close(figure)


def _curves(panel: Any, rows: list[dict[str, Any]], key: str) -> None:
    for name, colour in COLOURS.items():
        seeds: dict[float, list[float]] = {}
        for row in rows:
            if row["run"]["contender"] == name:
                seeds.setdefault(row["run"]["rate_per_s"], []).append(row["figures"][key])
        if not seeds:
            continue
        points = [(rate, *interval(values)) for rate, values in sorted(seeds.items())]
        rates, means = [p[0] for p in points], [p[1] for p in points]
        style = "--" if name == "srpt" else "-"
        panel.plot(rates, means, style, color=colour, label=CONTENDER_NAMES.get(name, name), marker="o", markersize=3)
        if all(half < float("inf") for _, _, half in points):
            low = [max(mean / 10, mean - half) for _, mean, half in points]
            panel.fill_between(rates, low, [mean + half for _, mean, half in points], color=colour, alpha=0.08)
