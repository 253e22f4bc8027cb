"""Two checkouts are compared round by round: paired ratios with an interval, probes that fail are reported."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import against
from benchmarks.against import Comparison, Probe, compared, main, rounds_of


def comparison(other: list[float], this: list[float]) -> Comparison:
    return compared("cost", other, this)


def test_a_cost_that_doubles_in_every_round_is_slower_by_two() -> None:
    drift = [1.0, 3.0, 2.0, 5.0]
    found = comparison(drift, [2 * cost for cost in drift])
    assert (found.ratio, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.verdict == "slower"
    assert comparison([2 * cost for cost in drift], drift).verdict == "faster"


def test_noise_around_equal_costs_shows_no_difference() -> None:
    rng = random.Random(1)
    shown = 0
    for _ in range(200):
        other, this = ([rng.lognormvariate(0, 0.3) for _ in range(12)] for _ in range(2))
        found = comparison(other, this)
        assert found.low < found.ratio < found.high
        shown += found.verdict != "no difference shown"
    assert shown <= 25, "a 95 % interval misses in one of twenty"


def test_a_single_round_shows_nothing() -> None:
    found = comparison([1.0], [5.0])
    assert (found.low, found.high, found.verdict) == (0.0, math.inf, "no difference shown")


def test_a_cost_below_the_clocks_resolution_is_refused() -> None:
    with pytest.raises(ValueError, match="too small to be measured"):
        comparison([0.0, 1.0], [1.0, 1.0])


async def test_rounds_of_both_sides_are_measured_and_their_order_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    measure = Probe.round

    async def recorded(probe: Probe) -> dict[str, float]:
        order.append("other" if probe.python == other else "this")
        return await measure(probe)

    this = Path(sys.executable)
    # The same program under another name: what matters here is who is asked when.
    other = this.parent / "." / ".." / this.parent.name / this.name
    monkeypatch.setattr(Probe, "round", recorded)
    rounds = await rounds_of("policy_step", {"other": other, "this": this}, 3)
    assert order == ["this", "other", "other", "this", "this", "other"]
    assert set(rounds["other"]) == set(rounds["this"])
    assert all(len(costs) == 3 and min(costs) > 0 for side in rounds.values() for costs in side.values())


async def test_a_probe_that_ends_early_is_an_error() -> None:
    probe = Probe("no_such_probe", Path(sys.executable))
    with pytest.raises(RuntimeError, match="the probe no_such_probe ended"):
        await probe.start()
    await probe.stop()


def test_a_checkout_without_an_environment_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, [str(tmp_path)])
    assert refused.exit_code == 1
    assert "has no .venv/bin/python" in refused.output


def test_every_probe_has_a_module() -> None:
    modules = {file.stem for file in (Path(against.__file__).parent / "probes").glob("*.py")}
    assert set(against.PROBES) <= modules
