"""Probe: microseconds of CPU of the default policy per engine step, by the number of waiting calls."""

from __future__ import annotations

from typing import Any

from benchmarks.probes.worker import answer_rounds

WAITING = (10, 100, 1_000, 10_000)
WARM_UP, STEPS = 200, 400


def engine_class() -> Any:
    """The stepped engine for this checkout's policy."""
    try:
        from benchmarks.stepped_engine import SteppedEngine
    except ImportError:
        from benchmarks.probes.stepped_engine_7539c88 import SteppedEngine as Before

        return Before
    return SteppedEngine


def main() -> None:
    """Measures the mean step at each queue length."""
    engines = {waiting: engine_class()(waiting) for waiting in WAITING}
    for engine in engines.values():
        for _ in range(WARM_UP):
            engine.step_us()

    def measure() -> dict[str, float]:
        return {
            f"policy step, {waiting:,} waiting (us CPU)": sum(engine.step_us() for _ in range(STEPS)) / STEPS
            for waiting, engine in engines.items()
        }

    answer_rounds(measure)


if __name__ == "__main__":
    main()
