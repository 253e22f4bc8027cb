"""Pictures of a dashboard's panels, drawn from what a Prometheus has recorded, as Grafana lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import dates
from matplotlib.ticker import FuncFormatter

mpl.use("Agg")
from matplotlib import pyplot as plt

# (metric's labels, [(unix seconds, value)]) of each series of an expression.
Series = Sequence[tuple[Mapping[str, str], Sequence[tuple[float, float]]]]
# Columns of Grafana's grid, and the inches that one of its units gets here.
COLUMNS, INCHES = 24, 0.28


def _seconds(value: float, _: object = None) -> str:
    if value >= 60:
        return f"{value / 60:.3g} min"
    return f"{value:.3g} s" if value >= 1 or not value else f"{value * 1000:.3g} ms"


# By Grafana's name of the unit.
UNITS: Mapping[str, Callable[[float, object], str]] = {
    "s": _seconds,
    "percentunit": lambda value, _: f"{value * 100:.3g} %",
    "short": lambda value, _: f"{value:.3g}",
    "reqps": lambda value, _: f"{value:.3g} req/s",
    "cps": lambda value, _: f"{value:.3g} c/s",
}


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    """Grafana's legendFormat with the series' labels."""
    for name, value in labels.items():
        pattern = pattern.replace(f"{{{{{name}}}}}", value)
    return pattern


def draw(panels: Sequence[Mapping[str, Any]], recorded: Callable[[str], Series], path: Path) -> dict[str, int]:
    """Draws all panels into one picture; returns the number of series of each, by its title."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(COLUMNS * INCHES * 2, rows * INCHES), dpi=80)
    drawn = {}
    for panel in panels:
        at = panel["gridPos"]
        left, top = at["x"] / COLUMNS, 1 - at["y"] / rows
        box = (left + 0.045, top - (at["h"] - 1.6) / rows, at["w"] / COLUMNS - 0.06, (at["h"] - 2.6) / rows)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"], loc="left", fontsize=9)
        count = 0
        for target in panel["targets"]:
            for labels, values in recorded(target["expr"]):
                times = [datetime.fromtimestamp(at_s, UTC) for at_s, _ in values]
                axes.plot(times, [each for _, each in values], label=legend(target["legendFormat"], labels), lw=1.2)
                count += 1
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1] * 1.25, 1e-9))
        axes.yaxis.set_major_formatter(FuncFormatter(UNITS[panel["fieldConfig"]["defaults"]["unit"]]))
        axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M", tz=UTC))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        if count:
            axes.legend(fontsize=6, loc="upper left", ncols=2)
        drawn[panel["title"]] = count
    figure.savefig(path)
    plt.close(figure)
    return drawn
