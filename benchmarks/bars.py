"""A bar: one figure, its goal, and how it was come by. Pure but for writing the results."""

from __future__ import annotations

import json
import operator
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentserving_replay.figures import interval

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Bar:
    """`goal` reads "<= 80" or ">= 0.97"; `noise` is the half width of a 95 % interval as a share of the value."""

    name: str
    value: float
    goal: str
    unit: str
    against: str
    runs: int
    noise: float

    @property
    def ok(self) -> bool:
        """True when the goal is met."""
        sign, _, bound = self.goal.partition(" ")
        compare = {"<=": operator.le, ">=": operator.ge}[sign]
        return bool(compare(self.value, float(bound)))

    def as_dict(self) -> dict[str, Any]:
        """As in summary.json."""
        return {**asdict(self), "ok": self.ok}


def bar(name: str, values: Sequence[float], goal: str, unit: str, against: str) -> Bar:
    """The mean of repeated measurements, with their noise."""
    mean, half = interval(values)
    noise = half / abs(mean) if mean and len(values) > 1 else 0.0
    return Bar(name, round(mean, 4), goal, unit, against, len(values), round(noise, 4))


def machine_noise(rounds: int = 40) -> float:
    """Spread of one fixed piece of work on this machine now: (p90 - p10) / median."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        sum(i * i for i in range(100_000))
        times.append(time.perf_counter() - began)
    ordered = sorted(times)
    return (ordered[int(rounds * 0.9)] - ordered[int(rounds * 0.1)]) / statistics.median(times)


def write(name: str, bars: Sequence[Bar], raw: Any) -> None:
    """results/<name>.json, and this benchmark's entries in results/summary.json replaced."""
    RESULTS.mkdir(exist_ok=True)
    document = {"bars": [each.as_dict() for each in bars], "machine_noise": round(machine_noise(), 3), "raw": raw}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    summary = RESULTS / "summary.json"
    known = {entry["name"]: entry for entry in json.loads(summary.read_text())} if summary.exists() else {}
    known.update({each.name: each.as_dict() for each in bars})
    summary.write_text(json.dumps(list(known.values()), indent=1) + "\n")
