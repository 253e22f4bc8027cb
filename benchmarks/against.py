"""``python -m benchmarks.against OTHER_CHECKOUT``: is this checkout slower than another one?

Takes under eight minutes on an idle machine.
Each probe (`benchmarks/probes`) runs as two processes, one with the Python of each checkout (its .venv). Rounds of the
two alternate, so a slow second of the machine affects both. All figures are costs. A ratio is this checkout's cost
divided by the other's, averaged over rounds in logarithms, with a 95 % interval: above 1 this checkout costs more.
``--out FILE`` writes all rounds as JSON, with both commits.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from agentserving_replay.figures import interval
from rich.console import Console
from rich.table import Table

from benchmarks.records import ROOT, commit_of, measured_now

# Probe and its number of rounds: starting a cluster takes seconds, a policy step microseconds.
PROBES = {"policy_step": 20, "admissions": 15, "etcd_commits": 15, "running_cluster": 12, "commands": 10}
# A probe that has taken this long begins no more rounds, apart from the LEAST_ROUNDS that an interval needs.
PROBE_S, LEAST_ROUNDS = 80.0, 2
ROUND_S = 180.0

# Figure -> its cost in every round.
Rounds = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A cost in both checkouts (mean of the rounds), and the ratio of this one to the other."""

    figure: str
    other: float
    this: float
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def verdict(self) -> str:
        """What the interval shows."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "no difference shown"


def compared(figure: str, other: Sequence[float], this: Sequence[float]) -> Comparison:
    """Compares paired rounds. ValueError when a cost is not positive: it has no ratio."""
    if min(*other, *this) <= 0:
        raise ValueError(f"{figure}: a cost of {min(*other, *this)} is too small to be measured")
    logs = [math.log(b / a) for a, b in zip(other, this, strict=True)]
    mean, half = interval(logs)
    return Comparison(
        figure=figure,
        other=sum(other) / len(other),
        this=sum(this) / len(this),
        ratio=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half) if math.isfinite(half) else math.inf,
        rounds=len(logs),
    )


class Probe:
    """A probe process of one checkout; `round` measures once."""

    def __init__(self, name: str, python: Path) -> None:
        self.name, self.python = name, python
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when the probe is ready. RuntimeError when it is not."""
        # With this directory first on its path, either Python imports the probes of this checkout.
        self._process = await asyncio.create_subprocess_exec(
            str(self.python), "-m", f"benchmarks.probes.{self.name}", cwd=ROOT,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await self._answer()

    async def round(self) -> dict[str, float]:
        """One round's figures. RuntimeError when the probe has failed."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()
        return await self._answer()

    async def _answer(self) -> dict[str, float]:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(ROUND_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.python}: the probe {self.name} ended; its error is above")
        figures: dict[str, float] = json.loads(line)
        return figures

    async def stop(self) -> None:
        """Closes the probe's input, so that it stops what it has started; kills it after 30 s."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def rounds_of(name: str, pythons: Mapping[str, Path], count: int) -> dict[str, Rounds]:
    """`count` rounds of a probe in each checkout, or as many as PROBE_S allows, in turn: A B, B A, A B ..."""
    ends = time.monotonic() + PROBE_S
    probes = {side: Probe(name, python) for side, python in pythons.items()}
    rounds: dict[str, Rounds] = {side: {} for side in probes}
    try:
        for probe in probes.values():
            await probe.start()
        for number in range(count):
            if number >= LEAST_ROUNDS and time.monotonic() > ends:
                break
            order = list(probes) if number % 2 else list(reversed(probes))
            for side in order:
                for figure, cost in (await probes[side].round()).items():
                    rounds[side].setdefault(figure, []).append(cost)
    finally:
        await asyncio.gather(*(probe.stop() for probe in probes.values()))
    return rounds


def table(comparisons: Sequence[Comparison], title: str) -> Table:
    """One row per figure."""
    rows = Table("cost", "other", "this", "this / other", "95 % interval", "rounds", "", title=title)
    for each in comparisons:
        rows.add_row(
            each.figure, f"{each.other:.4g}", f"{each.this:.4g}", f"{each.ratio:.3f}",
            f"{each.low:.3f} to {each.high:.3f}", str(each.rounds), each.verdict,
        )  # fmt: skip
    return rows


def python_of(checkout: Path) -> Path:
    """The Python of a checkout's environment. ClickException when it has none."""
    python = checkout / ".venv" / "bin" / "python"
    if not python.exists():
        raise click.ClickException(f"{checkout} has no .venv/bin/python: run `make setup` there")
    return python


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--probe", "names", multiple=True, type=click.Choice(list(PROBES)), help="Default: all.")
@click.option("--rounds", type=click.IntRange(2, 1000), help="Rounds of every probe. Default: as many as it needs.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write all rounds to this file.")
def main(other: Path, names: tuple[str, ...], rounds: int | None, out: Path | None) -> None:
    """Compare the speed of this checkout with that of OTHER, a checkout with an environment of its own."""
    pythons = {"other": python_of(other.resolve()), "this": Path(sys.executable)}
    commits = {"other": commit_of(other), "this": commit_of(ROOT)}
    console = Console(width=140)
    comparisons: list[Comparison] = []
    document: dict[str, Any] = {"measured": asdict(measured_now()), "commits": commits, "rounds": {}}
    for name in names or PROBES:
        console.print(f"{name} ...")
        try:
            found = asyncio.run(rounds_of(name, pythons, rounds or PROBES[name]))
        except RuntimeError as error:
            raise click.ClickException(str(error)) from error
        document["rounds"][name] = found
        comparisons += [compared(figure, costs, found["this"][figure]) for figure, costs in found["other"].items()]
    console.print(table(comparisons, f"{commits['this']} (this) against {commits['other']} (other)"))
    if out is not None:
        document["comparisons"] = [{**asdict(each), "verdict": each.verdict} for each in comparisons]
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
