"""``python -m benchmarks.scale_report``: draws docs/results/scale.svg and prints the tables of docs/scale.md.

Reads results/scale-PART.json, which scale.py writes. Each figure is the median of the runs, with the least and the
largest one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

from benchmarks.records import RESULTS, ROOT

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = ROOT / "docs" / "results"


class Spread(NamedTuple):
    """Median, least and largest."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 0 if self.high >= 100 else 1 if self.high >= 10 else 2
        return f"{self.middle:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


# Load (steady: 200 calls/s; closed: a closed loop), figure, title, factor.
PANELS = (
    ("closed", "calls_per_s", "calls/s, closed loop", 1.0),
    ("closed", "cpu_ms", "CPU us a call, closed loop", 1000.0),
    ("steady", "p50", "P50 ms until admitted, 200/s", 1.0),
    ("steady", "p99", "P99 ms until admitted, 200/s", 1.0),
)


def spread(point: dict[str, Any], load: str, name: str, factor: float = 1.0) -> Spread:
    """Median, least and most of a figure over the runs of a point."""
    values = sorted(factor * run[load][name] for run in point["runs"])
    return Spread(values[len(values) // 2], values[0], values[-1])


def read(part: str, directory: Path = RESULTS) -> dict[str, Any]:
    """The file of a part; empty when it has not been measured."""
    file = directory / f"scale-{part}.json"
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return document


def points() -> list[dict[str, Any]]:
    return [point for part in ("programs", "engines") for point in read(part).get("raw", {}).get("points", ())]


def draw(found: list[dict[str, Any]], out: Path) -> None:
    """A row of panels over live programs (2 engines), and one over engines (1,000 programs)."""
    rows = (
        ("live programs", "programs", [point for point in found if point["engines"] == 2]),
        ("engines", "engines", [point for point in found if point["programs"] == 1_000]),
    )
    figure, axes = plt.subplots(len(rows), len(PANELS), figsize=(4 * len(PANELS), 6.4), squeeze=False)
    for line, (title, key, here) in enumerate(rows):
        here = sorted(here, key=lambda point: int(point[key]))
        for column, (load, name, label, factor) in enumerate(PANELS):
            panel, spreads = axes[line][column], [spread(point, load, name, factor) for point in here]
            errors = [[each.middle - each.low for each in spreads], [each.high - each.middle for each in spreads]]
            panel.errorbar(
                [point[key] for point in here], [each.middle for each in spreads], yerr=errors, marker="o", capsize=3
            )
            panel.set_xscale("log")
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.25)
            panel.set_xlabel(title)
            panel.set_title(label)
    figure.tight_layout()
    figure.savefig(out / "scale.svg", metadata={"Date": None})
    plt.close(figure)


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| programs | engines | " + " | ".join(label for *_, label, _ in PANELS) + " | MiB | etcd MiB |"]
    lines.append("|---" * (len(PANELS) + 4) + "|")
    for point in found:
        cells = [str(spread(point, load, name, factor)) for load, name, _, factor in PANELS]
        memory = [f"{point['rss_mb']:.0f}", f"{point['etcd_rss_mb']:.0f}"]
        lines.append("| " + " | ".join([f"{point['programs']:,}", f"{point['engines']:,}", *cells, *memory]) + " |")
    return "\n".join(lines)


def main() -> None:
    found = points()
    draw(found, OUT)
    print(table(found))
    for part in ("programs", "engines", "outages"):
        document = read(part)
        if document:
            print(part, document["measured"], document["raw"].get("outages") or "")


if __name__ == "__main__":
    main()
