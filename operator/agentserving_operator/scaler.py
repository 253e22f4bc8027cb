"""The scalers of all clusters with autoscaling: asks their control planes every second, decides, drains engines.

A visit says what is there (`seen`, `aim`) and makes the StatefulSet and the status as `wanted` says. A round here asks
the control plane what programs need, decides (`scaling.decision`), plans (`scaling.plan`) and touches the cluster when
a visit would now do something else. Engines to be drained are recorded in the status before they are drained, so that
another operator ends the drains of those that stay after all, but never those of an administrator.

What is remembered of needs is lost with the process. Another one begins with the number in the status, and takes no
engine away before it has seen for `scaleInSeconds` that fewer are needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from agentserving_operator.control_planes import Target
from agentserving_operator.scaling.decision import SIGNALS, Bounds, Decision, ScaleReason, State, decide
from agentserving_operator.scaling.plan import Answer, Plan, Range, Work, plan
from agentserving_operator.spec.autoscaling import Autoscaling, ScalerType

log = structlog.get_logger()

Key = tuple[str, str]
EVERY_S = 1.0
# Control planes that are asked at a time.
PARALLEL = 8
# A control plane that has not answered for so long says nothing any more.
SILENT_S = 10.0
# Between two visits for the reason alone.
REASON_EVERY_S = 30.0


class Planes(Protocol):
    """What is asked of control planes. Neither raises."""

    async def need(self, target: Target) -> Answer | None:
        """None: it did not answer."""

    async def drain(self, target: Target, engine_id: str, drained: bool) -> bool:
        """Begins or ends a drain; True when it is so, also for an engine that the control plane does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a visit has found. `recorded`: engines of the status; `prefix`: an engine's name without its ordinal."""

    settings: Autoscaling
    replicas: int
    live: Range | None
    prefix: str
    recorded: tuple[str, ...] = ()
    # In the status; None = there is none yet.
    desired: int | None = None
    # Ordinals begin with 0 always: engines on several nodes.
    from_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a visit makes of a cluster: the engines' ordinals, and what its status says."""

    range: Range
    desired: int
    reason: ScaleReason
    # Engines that are drained or about to be, and those whose drain is to be ended.
    recorded: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Entry:
    seen: Seen
    state: State
    decision: Decision
    wanted: Wanted
    target: Target | None = None
    pods: frozenset[str] = frozenset()
    answer: Answer | None = None
    answered_at: float = 0.0
    # Engines of which the control plane has said that they are drained.
    drained: set[str] = field(default_factory=set)
    # Of these, the ones that were drained before the control plane was asked for the newest answer.
    drained_by_then: set[str] = field(default_factory=set)
    touched_at: float = 0.0
    # Whose drain was ended, until the status does not record them any more.
    undrained: set[str] = field(default_factory=set)


class Scaler:
    """All clusters. `touch` is called with namespace and name; `clock` gives monotonic seconds."""

    def __init__(
        self, planes: Planes, touch: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._planes, self._touch, self._clock = planes, touch, clock
        self._entries: dict[Key, _Entry] = {}

    # -- visits --------------------------------------------------------------------------------------------------

    def seen(self, key: Key, seen: Seen) -> Wanted:
        """What is there now; returns what should be."""
        entry, now_s = self._entries.get(key), self._clock()
        if entry is None:
            desired = seen.settings.bounded(seen.replicas if seen.desired is None else seen.desired)
            entry = self._entries[key] = _Entry(
                seen=seen, state=State.begin(desired, now_s), decision=Decision(desired, ScaleReason.NO_SIGNAL),
                wanted=Wanted(range=seen.live or Range(0, desired), desired=desired, reason=ScaleReason.NO_SIGNAL),
                answered_at=now_s,
            )  # fmt: skip
        self._note(entry, seen)
        self._decide(entry, entry.answer if self._is_fresh(entry) else None, count=False)
        entry.wanted = self._wanted(entry)[1]
        return entry.wanted

    def recorded(self, key: Key, engine_ids: Collection[str]) -> None:
        """The status says now that these are drained."""
        entry = self._entries.get(key)
        if entry is not None:
            self._note(entry, replace(entry.seen, recorded=tuple(engine_ids)))

    @staticmethod
    def _note(entry: _Entry, seen: Seen) -> None:
        entry.seen = seen
        for each in (entry.undrained, entry.drained, entry.drained_by_then):
            each.intersection_update(seen.recorded)

    def aim(self, key: Key, target: Target | None, pods: Collection[str]) -> None:
        """The control plane of a cluster, None = it does not serve; and the pods that exist, by name."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.target, entry.pods = target, frozenset(pods)

    def forget(self, key: Key) -> None:
        """The cluster is gone, or scales no longer."""
        self._entries.pop(key, None)

    # -- rounds --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Never returns."""
        while True:
            began = self._clock()
            await self.make_round()
            await asyncio.sleep(max(0.0, began + EVERY_S - self._clock()))

    async def make_round(self) -> None:
        """Asks all control planes once."""
        slots = asyncio.Semaphore(PARALLEL)

        async def ask(key: Key) -> None:
            async with slots:
                if key in self._entries:
                    await self._ask(key, self._entries[key])

        await asyncio.gather(*map(ask, list(self._entries)))

    async def _ask(self, key: Key, entry: _Entry) -> None:
        target = entry.target
        answer, drained = None, set(entry.drained)
        if target is not None:
            answer = await self._planes.need(target)
        if answer is not None:
            entry.answer, entry.answered_at, entry.drained_by_then = answer, self._clock(), drained
        elif self._is_fresh(entry):
            return
        self._decide(entry, answer, count=True)
        planned, wanted = self._wanted(entry)
        if target is not None and answer is not None:
            await self._drain(entry, target, planned)
            planned, wanted = self._wanted(entry)
        if self._entries.get(key) is entry and self._is_news(entry, wanted):
            entry.touched_at = self._clock()
            self._touch(*key)

    def _is_news(self, entry: _Entry, wanted: Wanted) -> bool:
        """Whether a visit would do something else. Reasons change often: they alone are worth a visit now and then."""
        before = entry.wanted
        if wanted.desired != before.desired:
            log.info("scaling", engine=entry.seen.prefix, engines=wanted.desired, reason=str(wanted.reason))
        if wanted.reason != before.reason and self._clock() - entry.touched_at > REASON_EVERY_S:
            return True
        return (wanted.range, wanted.desired, wanted.recorded) != (before.range, before.desired, before.recorded)

    async def _drain(self, entry: _Entry, target: Target, planned: Plan) -> None:
        """Begins the drains of engines that are recorded, and ends those of engines that stay or are gone."""
        seen = entry.seen
        leaving = {f"{seen.prefix}{each}" for each in planned.leaving}
        for engine_id in seen.recorded:
            if engine_id in leaving:
                if engine_id not in entry.drained and await self._planes.drain(target, engine_id, True):
                    entry.drained.add(engine_id)
                    entry.undrained.discard(engine_id)
                continue
            # Until its pod is gone, a removed engine takes no calls.
            stays = _ordinal(engine_id, seen.prefix) in planned.range.ordinals
            due = (stays or engine_id not in entry.pods) and engine_id not in entry.undrained
            if due and await self._planes.drain(target, engine_id, False):
                entry.drained.discard(engine_id)
                entry.drained_by_then.discard(engine_id)
                entry.undrained.add(engine_id)

    def _is_fresh(self, entry: _Entry) -> bool:
        return self._clock() - entry.answered_at < SILENT_S

    def _decide(self, entry: _Entry, answer: Answer | None, *, count: bool) -> None:
        """`count`: the answer is a new one, so that the decision is remembered."""
        settings = entry.seen.settings
        if settings.scaler is ScalerType.EXTERNAL:
            entry.decision = Decision(settings.bounded(entry.seen.replicas), ScaleReason.EXTERNAL)
        elif count:
            need = answer.need if answer is not None else None
            before = entry.decision
            entry.state, made = decide(entry.state, need, bounds_of(settings), self._clock())
            same = made.desired == before.desired and made.reason in SIGNALS and before.reason in SIGNALS
            entry.decision = before if same else made
        else:
            entry.decision = Decision(settings.bounded(entry.decision.desired), entry.decision.reason)

    def _wanted(self, entry: _Entry) -> tuple[Plan, Wanted]:
        seen, desired = entry.seen, entry.decision.desired
        live = seen.live or Range(0, desired)
        planned = plan(
            live, desired, _by_ordinal(entry.answer, seen.prefix),
            leaving=[_ordinal(each, seen.prefix) for each in seen.recorded if each not in entry.undrained],
            drained=[_ordinal(each, seen.prefix) for each in entry.drained_by_then] if self._is_fresh(entry) else (),
            from_zero=seen.from_zero,
        )  # fmt: skip
        recorded = {f"{seen.prefix}{each}" for each in planned.leaving}
        recorded |= set(seen.recorded) - entry.undrained
        wanted = Wanted(
            range=planned.range, desired=desired, reason=entry.decision.reason, recorded=tuple(sorted(recorded))
        )  # fmt: skip
        return planned, wanted


def bounds_of(settings: Autoscaling) -> Bounds:
    """The spec's numbers as the decision takes them."""
    return Bounds(
        least=settings.least,
        most=settings.most,
        target=settings.target_percent / 100,
        scale_in_s=settings.scale_in_seconds,
        idle_s=settings.idle_seconds,
    )


def range_of(statefulset: dict[str, Any] | None) -> Range | None:
    """The ordinals of a live StatefulSet; None when there is none."""
    if statefulset is None:
        return None
    spec = statefulset["spec"]
    return Range(int((spec.get("ordinals") or {}).get("start", 0)), int(spec.get("replicas", 1)))


def _ordinal(engine_id: str, prefix: str) -> int:
    """-1 for a name that is not of this StatefulSet."""
    number = engine_id.removeprefix(prefix)
    return int(number) if engine_id.startswith(prefix) and number.isdecimal() else -1


def _by_ordinal(answer: Answer | None, prefix: str) -> dict[int, Work]:
    if answer is None:
        return {}
    return {_ordinal(engine_id, prefix): work for engine_id, work in answer.work.items()}
