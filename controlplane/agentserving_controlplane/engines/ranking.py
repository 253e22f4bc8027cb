"""Engines in the order in which they take calls, maintained as they change. Pure.

Engines of one standing and one set of models form a group. Whatever the call, the engines of a group have the same
order: by load, then least recently chosen. So a choice reads the first engines of each group, and a change moves one
engine within its group.

A prompt token has one price in a pool, and a call one service time: the means of what its engines have measured. What
one engine measures depends on the calls that it happened to run, several times more behind long contexts than behind
short ones: as a price of its own it would decide where new programs go, and an engine that is not chosen would keep it
(0256 and 0266 of docs/decisions).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from agentserving.contract.ids import EngineId

from agentserving_controlplane.engines.engine import CALL_PARTS, CALL_US, PREFILL_US_PER_TOKEN, Engine
from agentserving_controlplane.engines.health import EngineState
from agentserving_controlplane.policy.version import Balancer

# Position of an engine: load, number of the choice that took it last, number of its arrival (no two have the same), and
# its place. Smaller is better. A plain tuple, because several are made for each call.
Rank = tuple[int, int, int, "Place"]


class Standing(IntEnum):
    """Which engines are given calls. DRAINING ones are in no group: only programs that ran there use them."""

    READY = 0
    FAILING = 1
    STUCK = 2
    DRAINING = 3
    UNUSABLE = 4


# Standings whose engines are in groups.
RANKED = (Standing.READY, Standing.FAILING, Standing.STUCK)
_STANDINGS = {
    EngineState.READY: Standing.READY,
    EngineState.FAILING: Standing.FAILING,
    EngineState.STUCK: Standing.STUCK,
    EngineState.DRAINING: Standing.DRAINING,
}


@dataclass(slots=True, eq=False)
class Place:
    """Where an engine is in the order."""

    engine: Engine
    joined: int
    pool: Pool
    chosen: int = 0
    standing: Standing = Standing.UNUSABLE
    load: int = 0
    # What it contributes to the means of its pool; 0 = nothing measured.
    token_ns: int = 0
    call_us: int = 0
    rank: Rank | None = None
    # The group that has the rank.
    group: list[Rank] | None = None
    trial: Trial | None = None


class Trial(NamedTuple):
    """An ejected engine without a trial call under way may get one after this time."""

    after_us: int
    joined: int
    place: Place


@dataclass(slots=True)
class Mean:
    """Of what engines have measured. Sums are whole numbers, so that nothing is left of engines that go."""

    total: int = 0
    count: int = 0

    def replace(self, before: int, now: int) -> int:
        """An engine measures `now` instead of `before`; 0 = nothing. Returns `now`."""
        self.total += now - before
        self.count += bool(now) - bool(before)
        return now


@dataclass(slots=True, eq=False)
class Pool:
    """Engines that serve the same models; none named: any model."""

    models: tuple[str, ...]
    # By standing.
    groups: tuple[list[Rank], ...] = field(default_factory=lambda: ([], [], []))
    trials: list[Trial] = field(default_factory=list)
    engines: int = 0
    # Nanoseconds of a prompt token, and microseconds of a call.
    tokens: Mean = field(default_factory=Mean)
    calls: Mean = field(default_factory=Mean)

    @property
    def us_per_token(self) -> float:
        """Price of a prompt token, in microseconds."""
        return self.tokens.total / (1000 * self.tokens.count) if self.tokens.count else PREFILL_US_PER_TOKEN

    @property
    def call_us(self) -> int:
        """Service time of a call, in microseconds."""
        return self.calls.total // self.calls.count if self.calls.count else int(CALL_US)

    def cost(self, load: int, prompt_tokens: float) -> int:
        """A call on an engine with this `Engine.queue_load` and so many tokens to prefill; in CALL_PARTS of 1 us."""
        return load * self.call_us + CALL_PARTS * int(prompt_tokens * self.us_per_token)

    def serves(self, model: str) -> bool:
        """False when its engines are known not to have the model; empty = any."""
        return not model or not self.models or model in self.models


class Ranking:
    """All engines, each in its place for the load balancer's `kind`."""

    def __init__(self, kind: Balancer = Balancer.PREFIX_AWARE) -> None:
        self.places: dict[EngineId, Place] = {}
        self._pools: dict[tuple[str, ...], Pool] = {}
        self._kind = kind
        self._joined = self._choices = 0
        # Number of READY engines.
        self.ready = 0

    # -- reading -------------------------------------------------------------------------------------------------

    def pools(self, model: str) -> list[Pool]:
        """Pools whose engines may serve a model."""
        pools = self._pools.values()
        return [pool for pool in pools if pool.serves(model)] if model else list(pools)

    # -- changing ------------------------------------------------------------------------------------------------

    def use(self, kind: Balancer) -> None:
        """Ranks all engines for another load balancer."""
        if kind is not self._kind:
            self._kind = kind
            for place in self.places.values():
                self._move(place)

    def put(self, engine: Engine) -> Place:
        """Puts an engine where it belongs now."""
        place, models = self.places.get(engine.engine_id), engine.capabilities.models
        if place is None:
            self._joined += 1
            place = self.places[engine.engine_id] = Place(engine, self._joined, self._enter(models))
        elif place.pool.models != models:
            self._take_out(place)
            place.pool = self._enter(models)
        self._move(place)
        return place

    def drop(self, engine_id: EngineId) -> None:
        place = self.places.pop(engine_id, None)
        if place is not None:
            self._take_out(place)
            self.ready -= place.standing is Standing.READY

    def choose(self, place: Place) -> None:
        """The engine has been chosen: when it is put next, it goes behind its equals."""
        self._choices += 1
        place.chosen = self._choices

    def _enter(self, models: tuple[str, ...]) -> Pool:
        pool = self._pools.get(models)
        if pool is None:
            pool = self._pools[models] = Pool(models)
        pool.engines += 1
        return pool

    def _leave(self, pool: Pool) -> None:
        pool.engines -= 1
        if not pool.engines:
            del self._pools[pool.models]

    def _move(self, place: Place) -> None:
        engine, kind = place.engine, self._kind
        load = 0
        self._measured(place, round(1000 * engine.load.prefill_us_per_token), engine.measured_call_us)
        if kind is Balancer.PREFIX_AWARE:
            load = engine.queue_load
        elif kind is not Balancer.ROUND_ROBIN:
            load = len(engine.calls)
        standing = Standing.READY if engine.is_ready else self._other_standing(place)
        self.ready += (standing is Standing.READY) - (place.standing is Standing.READY)
        group = place.pool.groups[standing] if standing in RANKED else None
        rank = (load, place.chosen, place.joined, place)
        if rank != place.rank or group is not place.group:
            self._take_from_group(place)
            place.load, place.rank, place.group = load, rank, group
            if group is not None:
                insort(group, rank)
        place.standing = standing
        if place.trial is not None or standing is Standing.FAILING:
            self._schedule_trial(place)

    @staticmethod
    def _other_standing(place: Place) -> Standing:
        # A stuck engine without an address cannot even queue calls.
        engine = place.engine
        return _STANDINGS.get(engine.state, Standing.UNUSABLE) if engine.address else Standing.UNUSABLE

    def _schedule_trial(self, place: Place) -> None:
        outliers = place.engine.outliers
        trial = None
        if place.standing is Standing.FAILING and outliers.trial not in place.engine.calls:
            trial = Trial(outliers.until_us, place.joined, place)
        if trial != place.trial:
            if place.trial is not None:
                _remove(place.pool.trials, place.trial)
            place.trial = trial
            if trial is not None:
                insort(place.pool.trials, trial)

    @staticmethod
    def _take_from_group(place: Place) -> None:
        if place.group is not None:
            _remove(place.group, place.rank)
        place.group = None

    def _take_out(self, place: Place) -> None:
        self._take_from_group(place)
        if place.trial is not None:
            _remove(place.pool.trials, place.trial)
        place.trial = None
        self._measured(place, 0, 0)
        self._leave(place.pool)

    @staticmethod
    def _measured(place: Place, token_ns: int, call_us: int) -> None:
        pool = place.pool
        place.token_ns = pool.tokens.replace(place.token_ns, token_ns)
        place.call_us = pool.calls.replace(place.call_us, call_us)


def _remove(ordered: list[Any], item: object) -> None:
    del ordered[bisect_left(ordered, item)]
