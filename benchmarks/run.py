"""``python -m benchmarks.run [name ...]``: measures, writes results/, prints a table. A missed bar is not a failure."""

from __future__ import annotations

import importlib
import json
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks import bars

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
)


def table() -> Table:
    """Every bar that was ever measured here."""
    made = Table(title="bars")
    for column in ("name", "value", "goal", "unit", "met", "runs", "noise", "against"):
        made.add_column(column)
    for entry in json.loads((bars.RESULTS / "summary.json").read_text()):
        made.add_row(
            entry["name"],
            f"{entry['value']:.4g}",
            entry["goal"],
            entry["unit"],
            "yes" if entry["ok"] else "no",
            str(entry["runs"]),
            f"{entry['noise']:.1%}",
            entry["against"],
        )
    return made


def main(names: list[str]) -> int:
    """Exit status."""
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    console = Console(width=140)
    for name in names or ALL:
        began = time.monotonic()
        console.print(f"{name} ...")
        measured, raw = importlib.import_module(f"benchmarks.{name}").measure()
        bars.write(name, measured, raw)
        console.print(f"{name}: {time.monotonic() - began:.0f} s")
    console.print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
