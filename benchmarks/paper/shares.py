"""The table of the default policy: figures of each policy as shares of FCFS's on the same programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentserving_replay.figures import interval

Row = Mapping[str, Any]
FCFS, DEFAULT, LEVELS = "vllm-opt", "auto", "program-plas"
OTHERS = ("program-fcfs", LEVELS, "gittins", DEFAULT)
HEADS = ["load", *OTHERS, f"{DEFAULT} / {LEVELS}", f"{DEFAULT}, p99 of the largest"]
# Mean program latency and time per token.
FIGURES = ("latency_s", "token_ms")


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """One line per load with the columns HEADS: means of the seeds' ratios with 95 % intervals, latency first."""
    loads: dict[tuple[str, float], dict[str, dict[int, Mapping[str, float]]]] = {}
    for row in rows:
        run = row["run"]
        policies = loads.setdefault((run["workload"], run["rate_per_s"]), {})
        policies.setdefault(run["contender"], {})[run["seed"]] = row["figures"]
    return [
        [
            load_name(*load),
            *(_both(policies[name], policies[FCFS]) for name in OTHERS),
            _both(policies[DEFAULT], policies[LEVELS]),
            _share(policies[DEFAULT], policies[FCFS], "large_latency_p99_s"),
        ]
        for load, policies in loads.items()
    ]


def load_name(workload: str, rate_per_s: float) -> str:
    """Parts with their own rates: "bfcl*1+map-reduce*0.4" at 0.5/s is "bfcl 0.5/s and map-reduce 0.2/s"."""
    parts = (part.partition("*") for part in workload.split("+"))
    return " and ".join(f"{name} {rate_per_s * float(share or 1):.2g}/s" for name, _, share in parts)


def _both(one: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]]) -> str:
    return ", ".join(_share(one, base, figure) for figure in FIGURES)


def _share(one: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]], figure: str) -> str:
    mean, half = interval([one[seed][figure] / base[seed][figure] for seed in sorted(one)])
    return f"{mean:.2f} ± {half:.2f}"
