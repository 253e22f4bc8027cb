"""How many engines live programs need, by each signal that knows. Pure.

Every answer is absolute, not a change of the present number, so that engines which are still starting are not asked for
twice. The operator's scaler takes the largest, and so does an autoscaler that reads the metrics.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.table.live_demand import HORIZON_US, Signals

# Calls wait for a step or two in an engine that has room: a smaller share says nothing.
WAITING_SHARE = 0.1
# A few large calls wait for each other now and then, and most of these waits end before an engine could start.
LASTING_US = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of one engine: tokens of context in its KV cache, and calls that run in parallel. 0 = no engine has said."""

    context_tokens: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Full engines' worth of each thing that programs need; a fraction of an engine is a fraction."""

    context: float = 0.0
    calls: float = 0.0
    service: float = 0.0
    waiting: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDemand:
    """What would be lost or would have to wait if one engine went."""

    engine_id: str
    kept_tokens: int = 0
    programs: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """All of it, at one moment."""

    signals: Signals = field(default_factory=Signals)
    needed: Needed = field(default_factory=Needed)
    size: Size = field(default_factory=Size)
    # Trees with calls in flight of which none runs.
    waiting_programs: int = 0
    # Of `needed.waiting`, what has lasted: see LastingWaits.
    lasting_waiting: float = 0.0
    engines: tuple[EngineDemand, ...] = ()


class LastingWaits:
    """The least that waiting calls needed within LASTING_US; 0 until that much time has been seen.

    For autoscalers that look seldom and remember nothing. An amount holds until the next one is noted.
    """

    def __init__(self) -> None:
        # (steady microseconds, the least amount since then), both rising.
        self._noted = deque[tuple[int, float]]()

    def note(self, amount: float, now_us: int) -> float:
        """Takes the amount of now; returns what has lasted."""
        noted = self._noted
        if not noted:
            noted.append((now_us, 0.0))
        since_us = now_us
        while noted and noted[-1][1] >= amount:
            since_us = noted.pop()[0]
        noted.append((since_us, amount))
        while len(noted) > 1 and noted[1][0] <= now_us - LASTING_US:
            noted.popleft()
        return noted[0][1]


def size_of(engines: Iterable[Engine], known: Size) -> Size:
    """The mean engine; `known`, if none has said how large it is."""
    said = [each.capabilities for each in engines if each.capabilities.num_blocks and each.capabilities.max_num_seqs]
    if not said:
        return known
    tokens = sum(each.num_blocks * each.block_size for each in said) // len(said)
    return Size(context_tokens=tokens, calls=max(1, sum(each.max_num_seqs for each in said) // len(said)))


def needed(signals: Signals, engines: Iterable[Engine], size: Size) -> Needed:
    """Engines of this size that live programs need."""
    calls = signals.calls + signals.held_calls
    if not size.calls or not size.context_tokens:
        # The first engine will say how large it is.
        return Needed(calls=float(bool(calls)))
    return Needed(
        context=signals.context_tokens / size.context_tokens,
        calls=calls / size.calls,
        service=signals.owed_us / HORIZON_US / size.calls,
        waiting=_engines_without_waiting([each for each in engines if each.is_ready]),
    )


def context_share(signals: Signals, engines: Iterable[Engine]) -> float:
    """Context that live programs have at least, as a share of what the KV caches of these engines contain; 0 = that is
    not known."""
    capacity_tokens = sum(engine.capacity_tokens for engine in engines)
    return signals.least_context_tokens / capacity_tokens if capacity_tokens else 0.0


def _engines_without_waiting(ready: list[Engine]) -> float:
    """So that as many calls run on each engine as now on those where calls wait; 0 while hardly any waits.

    What an engine holds and what it can do are estimates; that calls wait is seen. Engines where none waits say nothing
    of how many fit.
    """
    full = [each.load for each in ready if each.load.waiting and each.load.running]
    running, waiting = sum(each.load.running for each in ready), sum(each.load.waiting for each in ready)
    if not full or waiting <= WAITING_SHARE * (running + waiting):
        return 0.0
    return (running + waiting) * len(full) / sum(each.running for each in full)


def by_engine(signals: Signals, engines: Iterable[Engine]) -> tuple[EngineDemand, ...]:
    """What each engine has, in the order of the engines."""
    return tuple(
        EngineDemand(
            engine_id=each.engine_id,
            kept_tokens=signals.kept_tokens.get(each.engine_id, 0),
            programs=signals.kept_programs.get(each.engine_id, 0),
            calls=each.in_flight,
        )
        for each in engines
    )
