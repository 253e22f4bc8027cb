"""A cluster in virtual time whose number of engines follows a scaler: engines take time to start, and drain to leave.

The signals, the decision and the choice of engines are production's: the process table's demand, `engines.sizing`, and
the operator's `scaling`. For comparison there are autoscalers as others ship them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec
from agentserving.contract.ids import EngineId
from agentserving_controlplane.engines.sizing import Needed, Size, needed, size_of
from agentserving_controlplane.table.live_demand import Signals
from agentserving_operator.scaling.decision import Bounds, Need, ScaleReason, State, decide
from agentserving_operator.scaling.plan import Range, Work, plan

from agentserving_replay.cluster import ClusterSpec, VirtualCluster, _Engine, _Live


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a scaler is shown. `running` and `waiting`: calls on ready engines, as their metrics say."""

    now_s: float
    signals: Signals
    needed: Needed
    running: int
    waiting: int
    ready: int
    # Engines that were ordered: ready or starting.
    ordered: int


class Scaler(Protocol):
    """Decides how many engines there should be."""

    # How often it is asked, and which engine leaves: the one with less context, or the newest.
    every_s: float
    picks_by_context: bool

    def desired(self, seen: Seen) -> int:
        """From now on."""


class ProgramScaler:
    """The operator's."""

    every_s, picks_by_context = 2.0, True

    def __init__(self, bounds: Bounds, begin: int) -> None:
        self._bounds, self._state = bounds, State.begin(begin, 0.0)

    def desired(self, seen: Seen) -> int:
        """As the operator decides."""
        signals, amounts = seen.signals, seen.needed
        engines = {
            ScaleReason.CONTEXT: amounts.context, ScaleReason.CALLS: amounts.calls,
            ScaleReason.SERVICE: amounts.service, ScaleReason.WAITING: amounts.waiting,
        }  # fmt: skip
        need = Need(engines=engines, calls=signals.calls + signals.held_calls, programs=signals.programs)
        self._state, decision = decide(self._state, need, self._bounds, seen.now_s)
        return decision.desired


class QueueScaler:
    """A HorizontalPodAutoscaler on a metric of all engines, an average for each: waiting calls, or all calls.

    As Kubernetes' controller: every 15 s, tolerance 10 %, at most twice as many or four more in a period, fewer only to
    the largest recommendation of five minutes. Metrics are 15 s old.
    """

    every_s, picks_by_context = 15.0, False
    TOLERANCE, SCALE_IN_S, METRIC_AGE = 0.1, 300.0, 1

    def __init__(self, bounds: Bounds, target: float, *, only_waiting: bool) -> None:
        self._bounds, self._target, self._only_waiting = bounds, target, only_waiting
        self._past: deque[tuple[float, int]] = deque()
        self._metrics: deque[float] = deque(maxlen=1 + self.METRIC_AGE)

    def desired(self, seen: Seen) -> int:
        """As the controller decides."""
        self._metrics.append(seen.waiting + (0 if self._only_waiting else seen.running))
        metric, now = self._metrics[0], max(1, seen.ordered)
        wanted = math.ceil(metric / self._target)
        if abs(metric / now / self._target - 1) <= self.TOLERANCE:
            wanted = now
        wanted = min(wanted, max(2 * now, now + 4))
        self._past.append((seen.now_s, wanted))
        while self._past[0][0] <= seen.now_s - self.SCALE_IN_S:
            self._past.popleft()
        if wanted < now:
            wanted = min(now, max(count for _, count in self._past))
        return min(max(wanted, self._bounds.least), self._bounds.most)


class FixedScaler:
    """Always as many."""

    every_s, picks_by_context = 60.0, False

    def __init__(self, count: int) -> None:
        self._count = count

    def desired(self, seen: Seen) -> int:
        """The same."""
        return self._count


@dataclass(slots=True)
class _Slot:
    """An engine by its ordinal, from its order to its end."""

    since_us: int
    engine: _Engine | None = None
    leaving: bool = False


@dataclass(slots=True)
class Bill:
    """What was used: engine seconds, and (time, engines) at each change."""

    engine_s: float = 0.0
    counts: list[tuple[float, int]] = field(default_factory=list)


class ElasticCluster(VirtualCluster):
    """`start_s`: from the order of an engine until it serves. The engines of `spec` are ready at the beginning."""

    def __init__(self, spec: ClusterSpec, scaler: Scaler, start_s: float) -> None:
        super().__init__(spec)
        self._balances = True
        self._scaler, self._start_us = scaler, int(start_s * 1e6)
        self._slots = {number: _Slot(0, engine) for number, engine in enumerate(self.engines)}
        self._next_number, self._size = spec.engines, Size()
        # With the time since when.
        self._held: list[tuple[_Live, int, int]] = []
        self.bill = Bill(counts=[(0.0, spec.engines)])
        self._at(0, self._scale)

    # -- scaling -------------------------------------------------------------------------------------------------

    def _scale(self) -> None:
        now_s = self.now_us / 1e6
        ready = [slot.engine for slot in self._slots.values() if slot.engine is not None]
        for engine in ready:
            queue, load = engine.model.queue, engine.known.load
            engine.known.load = msgspec.structs.replace(load, running=queue.running_count, waiting=queue.waiting_count)
        known = [engine.known for engine in ready]
        signals = self._table.demand.signals(self.now_us)
        self._size = size_of(known, self._size)
        serving = [each for each in ready if each.known.is_ready]
        seen = Seen(
            now_s=now_s, signals=signals, needed=needed(signals, known, self._size),
            running=sum(each.model.queue.running_count for each in serving),
            waiting=sum(each.model.queue.waiting_count for each in serving),
            ready=len(serving), ordered=len(self._slots),
        )  # fmt: skip
        self._become(self._scaler.desired(seen), signals.kept_tokens)
        self._registry.forget_lost(self.now_us)
        if self._live or self._events:
            self._at(self.now_us + int(self._scaler.every_s * 1e6), self._scale)

    def _become(self, desired: int, kept: Mapping[EngineId, int]) -> None:
        ordinals = sorted(self._slots)
        live = Range(ordinals[0], len(ordinals)) if ordinals else Range()
        work = {
            number: Work(
                kept_tokens=kept.get(slot.engine.engine_id, 0) if self._scaler.picks_by_context else -number,
                calls=slot.engine.known.in_flight,
            )
            for number, slot in self._slots.items()
            if slot.engine is not None
        }
        leaving = [number for number, slot in self._slots.items() if slot.leaving]
        planned = plan(live, desired, work, leaving=leaving, drained=leaving)
        for number in planned.range.ordinals:
            if number not in self._slots:
                self._slots[number] = _Slot(self.now_us)
                self._at(self.now_us + self._start_us, partial(self._ready, number, self.now_us))
        for number, slot in list(self._slots.items()):
            slot.leaving = number in planned.leaving
            if slot.engine is not None:
                slot.engine.known.drained = slot.leaving
            if number not in planned.range.ordinals:
                self._remove(number, slot)
        if len(self._slots) != self.bill.counts[-1][1]:
            self.bill.counts.append((self.now_us / 1e6, len(self._slots)))

    def _ready(self, number: int, since_us: int) -> None:
        """An engine that was ordered serves, unless it has been given up meanwhile."""
        slot = self._slots.get(number)
        if slot is None or slot.since_us != since_us or slot.engine is not None:
            return
        engine = slot.engine = self._attached(self._next_number)
        self._next_number += 1
        self._engines[engine.engine_id] = engine
        self.engines.append(engine)
        engine.known.drained = slot.leaving
        held, self._held = self._held, []
        for live, index, held_us in held:
            if not live.open:
                # It is no tool that the program waited for.
                live.idle_since_us += self.now_us - held_us
            self._issue(live, index)

    def _remove(self, number: int, slot: _Slot) -> None:
        self.bill.engine_s += (self.now_us - slot.since_us) / 1e6
        del self._slots[number]
        if slot.engine is not None:
            self._registry.detach(slot.engine.known, self.now_us)
            self.engines.remove(slot.engine)
            del self._engines[slot.engine.engine_id]

    def close_bill(self) -> Bill:
        """What was used until now."""
        for slot in self._slots.values():
            self.bill.engine_s += (self.now_us - slot.since_us) / 1e6
            slot.since_us = self.now_us
        return self.bill

    # -- calls ---------------------------------------------------------------------------------------------------

    def _issue(self, live: _Live, index: int) -> None:
        # Gateways hold calls while there is no engine.
        if not self.engines:
            call = live.program.calls[index]
            hold_id = hash((live.row.key, index)) & (1 << 62) - 1 or 1
            self._table.demand.call_held(hold_id, live.row.root_key, call.prompt_tokens, self.now_us)
            self._held.append((live, index, self.now_us))
            return
        super()._issue(live, index)
