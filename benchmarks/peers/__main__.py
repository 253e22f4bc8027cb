"""``python -m benchmarks.peers``: what this front adds to a call, beside direct access, plain Envoy and other fronts.

Every round starts each front, loads it and stops it, in an order that changes. A front's processes share one core; the
load and the engines (upstream.c, load.c: built with gcc) share another one, both under SCHED_RR where that is
permitted. `make bench-peers` installs those that registries have (scripts/peers.sh). Peers that are not there are named
and skipped; the variables NGINX_BIN, HAPROXY_BIN, EPP_BIN and LITELLM_BIN name their binaries.
``--other CHECKOUT`` compares with another checkout of this project, which needs a .venv.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.against import python_of
from benchmarks.bar_table import bar_table
from benchmarks.peers import fronts, loads, running
from benchmarks.peers.fronts import Front
from benchmarks.peers.loads import DIRECT, LOADS, OURS, Load
from benchmarks.records import ROOT, commit_of, measured_now

ENGINE_PORT, ENGINES = 21000, 2
PEER_PORT, OUR_PORT, OTHER_PORT = 21100, 21200, 21300
OTHER = "other"

Rounds = dict[str, dict[str, list[dict[str, Any]]]]


def chosen_fronts(names: tuple[str, ...], other: Path | None, say: Console) -> list[Front]:
    """Those that can run here; says which cannot."""
    engines = range(ENGINE_PORT, ENGINE_PORT + ENGINES)
    every = [
        Front(name=DIRECT, port=ENGINE_PORT, parts=lambda home: []),
        fronts.ours(OURS, fronts.this_python(), OUR_PORT, ENGINE_PORT, ENGINES),
        *fronts.peers(PEER_PORT, engines),
    ]
    if other is not None:
        every.append(fronts.ours(OTHER, python_of(other.resolve()), OTHER_PORT, ENGINE_PORT, ENGINES))
    if unknown := set(names) - {front.name for front in every}:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(f.name for f in every)}")
    wanted = [front for front in every if not names or front.name in (*names, DIRECT)]
    for front in wanted:
        if front.unavailable:
            say.print(f"SKIPPED {front.name}: {front.unavailable}", markup=False)
    return [front for front in wanted if not front.unavailable]


def one_round(number: int, wanted: list[Front], what: list[Load], home: Path, rounds: Rounds, say: Console) -> None:
    """Adds an entry to each front and load."""
    order = list(wanted)
    random.Random(number).shuffle(order)
    for front in order:
        try:
            measure(front, number, what, home / f"{front.name}-{number}", rounds[front.name], say)
        except RuntimeError as error:
            if front.name in (DIRECT, OURS, OTHER):
                raise
            say.print(f"SKIPPED {front.name}: {error}", markup=False)
            wanted.remove(front)


def measure(
    front: Front, number: int, what: list[Load], home: Path, found: dict[str, list[dict[str, Any]]], say: Console
) -> None:
    """One front's part of a round."""
    with running.started(front, home) as (processes, start_s):
        found["start"].append({"start_s": start_s, "errors": 0, "not_sent": 0})
        for load in what:
            if load.rate_per_s > front.most_per_s or (load.callers > 1 and front.most_per_s < 1000):
                continue
            figures = running.loaded(front, load, number, processes, home)
            found[load.name].append(figures)
            parts = " ".join(f"{name} {ms:.3f}" for name, ms in figures["cpu"].items())
            say.print(
                f"{number} {front.name:8} {load.name:26} p50 {figures['p50']:.3f} p99 {figures['p99']:.3f} "
                f"max {figures['max']:.1f} {figures['rate']:.0f}/s errors {figures['errors']} "
                f"cpu {figures['cpu_ms']:.3f} ({parts})",
                highlight=False, soft_wrap=True,
            )  # fmt: skip


def table(rounds: Rounds) -> Table:
    """Medians over the rounds."""
    columns = ("load", "front", "+p50", "+p95", "+p99", "+max", "calls/s", "CPU ms a call", "errors", "rounds")
    rows = Table(*columns, title="milliseconds over direct access; medians of rounds")
    for load in LOADS:
        for front, found in rounds.items():
            entries = found.get(load.name, [])
            if not entries:
                continue
            more = [loads.median(loads.added(rounds, front, load.name, q)) for q in ("p50", "p95", "p99", "max")]
            errors = sum(int(each["errors"] + each["not_sent"]) for each in entries)
            rows.add_row(
                load.name, front, *(f"{each:.2f}" for each in more),
                f"{loads.median([each['rate'] for each in entries]):.0f}",
                f"{loads.median(loads.cpu(rounds, front, load.name)):.3f}", str(errors), str(len(entries)),
            )  # fmt: skip
    return rows


def comparison(rounds: Rounds, what: list[Load]) -> Table:
    """This checkout's costs over the other's."""
    rows = Table("load", "cost", "this / other", "95 % interval", title="below 1: this checkout is cheaper")
    for load in what:
        for figure in ("cpu_ms", "p50", "p99"):
            if rounds[OURS].get(load.name) and rounds[OTHER].get(load.name):
                value, low, high = loads.ratio(rounds, OURS, OTHER, load.name, figure)
                rows.add_row(load.name, figure, f"{value:.3f}", f"{low:.3f} to {high:.3f}")
    value, low, high = loads.ratio(rounds, OURS, OTHER, "start", "start_s")
    rows.add_row("start", "s", f"{value:.3f}", f"{low:.3f} to {high:.3f}")
    return rows


@click.command()
@click.option("--front", "names", multiple=True, help="Default: all. Direct access is always measured.")
@click.option("--load", "wanted", multiple=True, type=click.Choice([load.name for load in LOADS]), help="Default: all.")
@click.option("--rounds", "count", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--other", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another checkout.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write all rounds to this file.")
def main(names: tuple[str, ...], wanted: tuple[str, ...], count: int, other: Path | None, out: Path | None) -> None:
    """Measure fronts in interleaved rounds."""
    say = Console(width=160)
    if len(os.sched_getaffinity(0)) < 2:
        raise click.ClickException("two cores are needed: one for the front, one for the load and the engines")
    if os.geteuid():
        say.print("not root: no SCHED_RR, so other work on this machine is in the tails")
    every = chosen_fronts(names, other, say)
    what = [load for load in LOADS if not wanted or load.name in wanted]
    rounds: Rounds = {front.name: defaultdict(list) for front in every}
    with tempfile.TemporaryDirectory(prefix="as-peers-") as directory:
        home = Path(directory)
        with running.engines(ENGINE_PORT, ENGINES, home / "channel", home / "engines.log"):
            for number in range(count):
                one_round(number, every, what, home, rounds, say)
    judged = loads.bars(rounds) if OURS in rounds else []
    say.print(table(rounds))
    say.print(bar_table(judged, commit_of(ROOT)))
    if OURS in rounds and OTHER in rounds:
        say.print(comparison(rounds, what))
    if out is not None:
        document = {
            "measured": asdict(measured_now()),
            "other": commit_of(other) if other is not None else None,
            "bars": [each.as_dict() for each in judged],
            "rounds": rounds,
        }
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
