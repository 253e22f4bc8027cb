"""What `make scale` says of its goals."""

from __future__ import annotations

from typing import Any

from benchmarks.bars import Verdict
from benchmarks.scale_bars import bars


def point(programs: int, engines: int, calls_per_s: tuple[float, ...], p50: float) -> dict[str, Any]:
    runs = [{"closed": {"calls_per_s": each}, "steady": {"p50": p50}} for each in calls_per_s]
    return {"programs": programs, "engines": engines, "runs": runs}


def test_a_goal_is_judged_by_the_bad_end_of_the_interval() -> None:
    points = [
        point(100, 2, (9_000.0, 9_100.0, 9_050.0), 1.0),
        point(1_000, 2, (5_100.0, 5_200.0, 5_150.0), 1.0),
        point(100_000, 2, (4_000.0, 4_100.0, 4_050.0), 1.2),
        point(1_000, 1_000, (2_000.0, 5_000.0, 3_600.0), 1.0),
    ]
    found = {each.against: each.verdict for each in bars({"points": points, "outages": {}, "lease_s": 5})}
    assert found == {
        "1,000 programs, 2 engines": Verdict.MET,
        "1,000 programs, 1,000 engines": Verdict.NOT_SHOWN,
        "100,000 / 100 programs": Verdict.MET,
    }


def test_one_run_shows_nothing_and_a_slow_takeover_is_missed() -> None:
    (calls,) = bars({"points": [point(2_000, 2, (6_000.0,), 1.0)], "outages": {}, "lease_s": 5})
    assert calls.verdict is Verdict.NOT_SHOWN
    (failover,) = bars({"points": [], "outages": {"failover_s": [9.0, 9.1, 9.2]}, "lease_s": 5})
    assert (failover.verdict, failover.goal) == (Verdict.MISSED, "<= 8")
