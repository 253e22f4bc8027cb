"""What a step of the engine runs of parts that are switched off."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from agentserving_engine.policy import engine_policy, footprint, working_set

from benchmarks.stepped_engine import SteppedEngine

STEPS = 100
OF_WORKING_SETS = {Path(str(module.__file__)) for module in (working_set, footprint)}


def test_a_step_calls_nothing_of_working_sets_while_the_policy_bounds_none() -> None:
    engine = SteppedEngine(waiting=50)
    called: list[str] = []
    decisions = 0

    def profiled(frame: FrameType, event: str, argument: object) -> None:
        nonlocal decisions
        if event != "call":
            return
        code = frame.f_code
        decisions += code is engine_policy.EnginePolicy.decide.__code__
        bounds = code is engine_policy.EnginePolicy._bound.__code__
        if bounds or Path(code.co_filename) in OF_WORKING_SETS:
            called.append(code.co_qualname)

    sys.setprofile(profiled)
    try:
        for _ in range(STEPS):
            engine.step_us()
    finally:
        sys.setprofile(None)
    assert (decisions, called) == (STEPS, [])
