"""Bars as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from benchmarks.bars import Bar


def bar_table(found: Sequence[Bar], commit: str) -> Table:
    """Each with its interval, and the verdict that the interval's bad end gives."""
    rows = Table("bar", "load", "value", "95 % interval", "goal", "verdict", "runs", title=f"bars at {commit}")
    for each in found:
        interval = f"{each.low:.3f} to {each.high:.3f}"
        value = f"{each.value:.3f} {each.unit}"
        rows.add_row(each.name, each.against, value, interval, each.goal, str(each.verdict), str(each.runs))
    return rows
