"""The demo's picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentserving_cli.summary import Summary

COLOURS = ("#8a8f98", "#1f6feb", "#2da44e", "#bf3989")


def _headline(summary: Summary) -> str:
    return (
        f"{summary.policy.upper()}: {summary.token_latency_mean_ms:.0f} ms per token, "
        f"{summary.latency_mean_s:.1f} s per program, of which it waits {summary.wait_share:.0%}; "
        f"{summary.prefix_hits:.0%} of prompt tokens from the prefix cache"
    )


def draw(summaries: Sequence[Summary], path: Path) -> Path:
    """Writes a PNG: the share of programs within a time per token, and the mean latency of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    figure.suptitle("\n".join(map(_headline, summaries)), fontsize=11)
    for summary, colour in zip(summaries, COLOURS, strict=False):
        ordered = sorted(summary.per_token_ms)
        share = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
        left.step(ordered, share, where="post", color=colour, linewidth=2, label=summary.policy.upper())
        left.axvline(summary.token_latency_mean_ms, color=colour, linestyle=":", linewidth=1)
    left.set(xlabel="program latency per output token (ms); dotted: mean", ylabel="programs (%)", ylim=(0, 100))
    left.set_xscale("log")
    left.legend(loc="lower right", frameon=False)
    left.set_title("How long a token takes, waits included")
    shapes = sorted({shape for summary in summaries for shape in summary.shapes})
    width = 0.8 / max(1, len(summaries))
    for index, (summary, colour) in enumerate(zip(summaries, COLOURS, strict=False)):
        at = [position + index * width - 0.4 + width / 2 for position in range(len(shapes))]
        bars = right.bar(at, [summary.shapes.get(shape, 0.0) for shape in shapes], width, color=colour)
        right.bar_label(bars, fmt="%.1f", fontsize=8)
    right.set(xticks=range(len(shapes)), xticklabels=shapes, ylabel="mean latency (s)")
    right.set_title("By kind of program")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
