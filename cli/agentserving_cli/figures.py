"""The demo's picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentserving_cli.summary import Summary

COLOURS = ("#8a8f98", "#1f6feb", "#2da44e", "#bf3989")


def _label(summary: Summary) -> str:
    return f"{summary.policy.upper()}: {summary.wait_share:.0%} of the time waiting"


def draw(summaries: Sequence[Summary], path: Path) -> Path:
    """Writes a PNG: the share of programs below a latency per token, and the mean latency of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    for summary, colour in zip(summaries, COLOURS, strict=False):
        ordered = sorted(summary.token_latencies_ms)
        share = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
        left.step(ordered, share, where="post", color=colour, linewidth=2, label=_label(summary))
        left.axvline(summary.token_latency_mean_ms, color=colour, linestyle=":", linewidth=1)
    left.set(xscale="log", xlabel="program latency per token (ms); dotted: mean", ylabel="programs (%)", ylim=(0, 100))
    left.xaxis.set_major_formatter("{x:g}")
    left.legend(loc="lower right", frameon=False)
    left.set_title("How fast programs get their tokens")
    shapes = sorted({shape for summary in summaries for shape in summary.shapes})
    width = 0.8 / max(1, len(summaries))
    for index, (summary, colour) in enumerate(zip(summaries, COLOURS, strict=False)):
        at = [position + index * width - 0.4 + width / 2 for position in range(len(shapes))]
        bars = right.bar(at, [summary.shapes.get(shape, 0.0) for shape in shapes], width, color=colour)
        right.bar_label(bars, fmt="%.1f", fontsize=8)
    right.set(xticks=range(len(shapes)), xticklabels=shapes, ylabel="mean latency (s)")
    right.set_title("How long programs take, by kind")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
