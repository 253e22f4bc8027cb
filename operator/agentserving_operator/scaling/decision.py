"""The number of engines that a cluster should have, from what its live programs need. Pure.

The control plane says how many full engines each signal needs (GetDemand). The largest, divided by the target, is the
*recommendation* of a moment.

- Out: as soon as two recommendations in a row want it, so that a burst of one moment starts no engine. The first engine
  of a cluster without any is started at once. That calls wait counts when it has lasted for WAITING_S: a few large
  calls wait for each other now and then, and most of these waits are over before an engine could start.
- In: to the largest recommendation of the last `scale_in_s`; to zero only after `idle_s` without any need.
- Without a signal nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

# A recommendation is compared with the one before it only if that is not older.
CONFIRMED_WITHIN_S = 15.0
WAITING_S = 10.0
# Sums of floats that should be whole engines.
_EPSILON = 1e-6


class ScaleReason(StrEnum):
    """Why there should be as many engines. A closed list."""

    # The signal that needs most: contexts of live programs; calls in flight; service predicted; calls that wait.
    CONTEXT = "Context"
    CALLS = "Calls"
    SERVICE = "Service"
    WAITING = "Waiting"
    # Programs would need fewer; the bound says so.
    AT_MINIMUM = "AtMinimum"
    # Programs need more; the bound says so.
    AT_MAXIMUM = "AtMaximum"
    # More were needed a short time ago.
    SCALE_IN_DELAYED = "ScaleInDelayed"
    # No program needs an engine.
    IDLE = "Idle"
    # The control plane has not said what programs need.
    NO_SIGNAL = "NoSignal"
    # spec.engine.replicas says so.
    EXTERNAL = "External"


SIGNALS = (ScaleReason.CONTEXT, ScaleReason.CALLS, ScaleReason.SERVICE, ScaleReason.WAITING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the user set."""

    least: int
    most: int
    # Share of an engine that programs may need, above 0, at most 1.
    target: float
    scale_in_s: float
    idle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What the control plane says. `engines`: full engines' worth by signal; `calls`: in flight, or held."""

    engines: Mapping[ScaleReason, float] = field(default_factory=dict)
    calls: int = 0
    # Programs whose context counts.
    programs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is remembered between two decisions. Times are monotonic seconds.

    `past`: (time, recommendation) with falling numbers: the largest since a time is the first one after it.
    """

    desired: int
    past: tuple[tuple[float, int], ...] = ()
    # The newest recommendation; and when the newest one above zero was made.
    newest: tuple[float, int] | None = None
    used_at: float = -math.inf
    # (time, what the signal Waiting needed) of the last WAITING_S, and the last one before.
    waits: tuple[tuple[float, float], ...] = ()

    @classmethod
    def begin(cls, desired: int, now_s: float) -> State:
        """After a start: the number that was in force counts as a recommendation of now."""
        return cls(desired=desired, past=((now_s, desired),), used_at=now_s if desired else -math.inf)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many engines, and why."""

    desired: int
    reason: ScaleReason


def recommendation(need: Need, bounds: Bounds) -> tuple[int, ScaleReason]:
    """Engines that are needed at this moment, whatever was before and whatever the bounds are."""
    counts = {
        # That calls wait says by itself that engines are full.
        signal: math.ceil(amount / (1.0 if signal is ScaleReason.WAITING else bounds.target) - _EPSILON)
        for signal, amount in need.engines.items()
    }
    signal = max(SIGNALS, key=lambda each: counts.get(each, 0))
    count = max(counts.get(signal, 0), 1 if need.calls or need.programs else 0)
    return count, signal if count else ScaleReason.IDLE


def decide(state: State, need: Need | None, bounds: Bounds, now_s: float) -> tuple[State, Decision]:
    """The number of engines from now on. `need` None: the control plane has not answered."""
    if need is None:
        desired = _bounded(state.desired, bounds)
        return replace(state, desired=desired, newest=None, waits=()), Decision(desired, ScaleReason.NO_SIGNAL)
    state, need = _with_lasting_waits(state, need, now_s)
    wanted, signal = recommendation(need, bounds)
    newest, state = state.newest, _remembering(state, wanted, bounds, now_s)
    desired = state.desired
    if wanted > desired:
        # The smaller of two in a row.
        is_confirmed = newest is not None and now_s - newest[0] <= CONFIRMED_WITHIN_S
        confirmed = min(wanted, newest[1]) if newest is not None and is_confirmed else 0
        desired = max(desired, confirmed, 1)
    else:
        desired = min(desired, max(count for _, count in state.past))
    if not desired and now_s - state.used_at < bounds.idle_s:
        desired = 1
    desired = _bounded(desired, bounds)
    return replace(state, desired=desired), Decision(desired, _reason(desired, wanted, signal, bounds))


def _with_lasting_waits(state: State, need: Need, now_s: float) -> tuple[State, Need]:
    """The need with the least that waiting calls needed within WAITING_S; 0 until that much time has been seen."""
    waits = [*state.waits, (now_s, need.engines.get(ScaleReason.WAITING, 0.0))]
    while len(waits) > 1 and waits[1][0] <= now_s - WAITING_S:
        del waits[0]
    lasting = min(amount for _, amount in waits) if waits[0][0] <= now_s - WAITING_S else 0.0
    engines = {**need.engines, ScaleReason.WAITING: lasting}
    return replace(state, waits=tuple(waits)), replace(need, engines=engines)


def _remembering(state: State, wanted: int, bounds: Bounds, now_s: float) -> State:
    past = [each for each in state.past if each[0] > now_s - bounds.scale_in_s]
    # One that is not larger than a newer one decides nothing any more.
    while past and past[-1][1] <= wanted:
        past.pop()
    past.append((now_s, wanted))
    used_at = now_s if wanted else state.used_at
    return replace(state, past=tuple(past), newest=(now_s, wanted), used_at=used_at)


def _bounded(count: int, bounds: Bounds) -> int:
    return min(max(count, bounds.least), bounds.most)


def _reason(desired: int, wanted: int, signal: ScaleReason, bounds: Bounds) -> ScaleReason:
    if wanted > desired:
        return ScaleReason.AT_MAXIMUM if desired == bounds.most else signal
    if wanted < desired:
        return ScaleReason.AT_MINIMUM if desired == bounds.least else ScaleReason.SCALE_IN_DELAYED
    return signal
