"""The files in results/: raw figures with where they were measured, and the summary computed from all of them.

A benchmark's file is the only thing that measuring writes. `summary.json` is derived from these files, so it can be
rebuilt at any time and never contains a figure without its commit.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]

Summarise = Callable[[Any], Sequence[Bar]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Where and when raw figures were measured."""

    # Short hash; ends in "-dirty" when the working tree had changes.
    commit: str
    # ISO 8601, UTC.
    date: str
    machine: str
    # Spread of a fixed piece of work: see `machine_noise`.
    machine_noise: float
    # "run": written by the run itself. "history": the commit that added the figures, for files older than this record.
    source: str = "run"


def machine_noise(rounds: int = 40) -> float:
    """Spread of one fixed piece of work on this machine now: (p90 - p10) / median."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        sum(i * i for i in range(100_000))
        times.append(time.perf_counter() - began)
    ordered = sorted(times)
    return (ordered[int(rounds * 0.9)] - ordered[int(rounds * 0.1)]) / statistics.median(times)


def commit_of(checkout: Path) -> str:
    """Short hash of a checkout's HEAD, "-dirty" appended when tracked files have changed; "unknown" outside of git."""
    git = ("git", "-C", str(checkout))
    head = subprocess.run((*git, "rev-parse", "--short", "HEAD"), capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    # The results are what a run writes: they do not change what it measures.
    changed = subprocess.run(
        (*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs/results"),
        capture_output=True,
        text=True,
    )
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def machine() -> str:
    """Processor and number of cores."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {named[0] if named else model}"


def measured_now() -> Measured:
    """The record of a run that ends now."""
    return Measured(
        commit=commit_of(ROOT),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine(),
        machine_noise=round(machine_noise(), 3),
    )


def write(name: str, raw: Any, measured: Measured, directory: Path = RESULTS) -> None:
    document = {"measured": asdict(measured), "raw": raw}
    (directory / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def summary(benchmarks: Mapping[str, Summarise], directory: Path = RESULTS) -> dict[str, Any]:
    """Every bar of every benchmark that has a file, judged now, with the commit, date and machine of its figures."""
    bars: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for name, summarise in benchmarks.items():
        file = directory / f"{name}.json"
        if not file.exists():
            continue
        document = json.loads(file.read_text())
        runs.append(document["measured"])
        bars += [{**each.as_dict(), **document["measured"]} for each in summarise(document["raw"])]
    return {"note": note_on_ages(runs), "bars": bars}


def note_on_ages(runs: Sequence[Mapping[str, Any]]) -> str:
    """Says whether the figures are of one state of the code."""
    commits = {run["commit"] for run in runs}
    if not runs:
        return "nothing has been measured"
    if len(commits) == 1:
        return f"all measured at {commits.pop()}"
    first, last = (pick(runs, key=lambda run: str(run["date"])) for pick in (min, max))
    return (
        f"measured at {len(commits)} commits, from {first['commit']} ({first['date'][:10]}) to {last['commit']} "
        f"({last['date'][:10]}): bars of different commits are not comparable with each other"
    )


def write_summary(benchmarks: Mapping[str, Summarise], directory: Path = RESULTS) -> dict[str, Any]:
    """Rebuilds summary.json from the raw files."""
    document = summary(benchmarks, directory)
    (directory / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    return document
