"""The goals of `benchmarks.scale`, judged. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bars import Bar, bar

# Calls a second of one leader, by engines; the goals are for few programs.
CALLS_PER_S = {2: 5_000, 1_000: 3_000}
# What "flat" means: this many times the time until an admission, from the fewest programs to the most, on two engines.
FLAT = 1.5
# From the death of a leader to the first admission by the next one, besides the lease.
TAKEOVER_S = 3


def bars(raw: Mapping[str, Any]) -> list[Bar]:
    """Those that a part of the measurement has figures for."""
    points = sorted(raw["points"], key=lambda point: point["programs"])
    found = []
    for engines, goal in CALLS_PER_S.items():
        few = next((point for point in points if point["engines"] == engines and point["programs"] >= 1_000), None)
        if few is not None:
            rates = [run["closed"]["calls_per_s"] for run in few["runs"]]
            what = f"{few['programs']:,} programs, {engines:,} engines"
            found.append(bar("leader-calls-per-s", rates, f">= {goal}", "1/s", what))
    alike = [point for point in points if point["engines"] == 2]
    if len(alike) > 1:
        least, most = alike[0], alike[-1]
        pairs = zip(least["runs"], most["runs"], strict=True)
        growth = [many["steady"]["p50"] / few["steady"]["p50"] for few, many in pairs]
        what = f"{most['programs']:,} / {least['programs']:,} programs"
        found.append(bar("growth-p50", growth, f"<= {FLAT}", "ratio", what))
    if failovers := raw["outages"].get("failover_s"):
        goal_s = raw["lease_s"] + TAKEOVER_S
        found.append(bar("failover", failovers, f"<= {goal_s}", "s", f"lease {raw['lease_s']} s"))
    return found
