"""``python -m benchmarks.run [name ...]``: measures, writes results/ and prints the bars. A missed bar is no failure.

``--judge`` measures nothing: it rebuilds summary.json from the raw figures in results/ and prints it.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import records

ALL = (
    "policy_step",
    "control_plane",
    "gateway",
    "throughput",
    "policies",
    "plugin_alone",
    "low_load",
    "validation",
    "kv_pressure",
    "agents",
    "agents_host",
)


def judges() -> dict[str, records.Summarise]:
    """What turns each benchmark's raw figures into bars."""
    return {name: importlib.import_module(f"benchmarks.{name}").summarise for name in ALL}


def interval_of(entry: dict[str, Any]) -> str:
    """A bar's 95 % interval."""
    return "one run" if entry["low"] is None else f"{entry['low']:.4g} to {entry['high']:.4g}"


def remarks(entry: dict[str, Any]) -> str:
    """What a reader must know before believing a bar."""
    failed = f"{entry['failed']} failed; " if entry["failed"] else ""
    return failed + ("in-sample; " if entry["in_sample"] else "") + str(entry["against"])


def table(document: dict[str, Any]) -> Table:
    """All bars of a summary."""
    columns = ("name", "value", "95 % interval", "goal", "unit", "verdict", "runs", "commit", "against")
    rows = Table(*columns, title=f"bars: {document['note']}")
    for entry in document["bars"]:
        rows.add_row(
            entry["name"],
            f"{entry['value']:.4g}",
            interval_of(entry),
            entry["goal"],
            entry["unit"],
            entry["verdict"],
            str(entry["runs"]),
            f"{entry['commit']} {entry['date'][:10]}",
            remarks(entry),
        )
    return rows


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(ALL))
@click.option("--judge", is_flag=True, help="Measure nothing; rebuild summary.json from the raw figures.")
def main(names: tuple[str, ...], judge: bool) -> None:
    """Measure the named benchmarks (default: all of them) and judge the bars."""
    console = Console(width=180)
    for name in () if judge else names or ALL:
        began = time.monotonic()
        console.print(f"{name} ...")
        raw = importlib.import_module(f"benchmarks.{name}").measure()
        records.write(name, raw, records.measured_now())
        console.print(f"{name}: {time.monotonic() - began:.0f} s")
    console.print(table(records.write_summary(judges())))


if __name__ == "__main__":
    sys.exit(main())
