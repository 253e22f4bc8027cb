"""``python -m benchmarks.paper [--quick] [experiment ...]``: runs experiments and writes docs/results.

``--report`` runs nothing: it rebuilds tables and pictures from the raw results.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.paper import report
from benchmarks.paper.experiments import EXPERIMENTS
from benchmarks.paper.runs import execute_all
from benchmarks.records import ROOT, commit_of

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(EXPERIMENTS)))
@click.option("--quick", is_flag=True, help="Few seeds, short windows: shows that everything runs.")
@click.option("--report", "report_only", is_flag=True, help="Run nothing; rebuild tables and pictures.")
@click.option("--processes", default=os.cpu_count() or 1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(names: tuple[str, ...], quick: bool, report_only: bool, processes: int, out: Path) -> None:
    """Run the named experiments (default: all of them) and write tables and pictures."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for name in () if report_only else names or EXPERIMENTS:
            runs = list(EXPERIMENTS[name](quick))
            bar = progress.add_task(name, total=len(runs))
            began, rows = time.monotonic(), []
            for run, figures in execute_all(runs, processes):
                rows.append({"run": asdict(run), "figures": figures.as_dict()})
                progress.advance(bar)
            rows.sort(key=lambda row: json.dumps(row["run"]))
            seconds = round(time.monotonic() - began)
            document = {"commit": commit_of(ROOT), "quick": quick, "seconds": seconds, "rows": rows}
            (out / f"{name}.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
    report.write(out)
    console.print(f"results in {out}")


if __name__ == "__main__":
    sys.exit(main())
