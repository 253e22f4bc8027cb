"""The state of an engine, derived from what is known about it. Pure.

An engine gets calls only while it is READY. The sidecar reports the health of the engine process; the control plane
adds what only it knows: whether the sidecar is attached, whether a drain was requested, whether the engine's calls fail
(outliers.py).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Health(IntEnum):
    """Health of the engine process as its sidecar reports it. UNSPECIFIED: an old sidecar, SERVING unless stuck."""

    UNSPECIFIED = 0
    SERVING = 1
    LOADING = 2
    STUCK = 3
    DOWN = 4


class EngineState(IntEnum):
    """Numbers equal those of the contract (types.proto)."""

    READY = 1
    DRAINING = 2
    STUCK = 3
    LOST = 4
    LOADING = 5
    DOWN = 6
    FAILING = 7


class Condition(NamedTuple):
    """A state and, for people, its reason; the reason of READY is empty."""

    state: EngineState
    reason: str = ""


READY = Condition(EngineState.READY)
_OF_HEALTH = {
    Health.DOWN: Condition(EngineState.DOWN, "the engine process is not running or does not answer"),
    Health.LOADING: Condition(EngineState.LOADING, "the engine process is starting"),
    Health.STUCK: Condition(EngineState.STUCK, "the engine has work but makes no step"),
}


def condition_of(
    *, attached: bool, has_address: bool, health: Health, health_reason: str, failing: str, draining: str
) -> Condition:
    """The most serious condition that holds: LOST, DOWN, LOADING, STUCK, FAILING, DRAINING, else READY.

    `failing` and `draining` are reasons, empty when they do not apply.
    """
    if not attached:
        return Condition(EngineState.LOST, "its sidecar is not attached")
    found = _OF_HEALTH.get(health)
    if found is not None:
        return Condition(found.state, health_reason or found.reason)
    if not has_address:
        return Condition(EngineState.LOADING, "its sidecar has not reported an address yet")
    if failing:
        return Condition(EngineState.FAILING, failing)
    if draining:
        return Condition(EngineState.DRAINING, draining)
    return READY
