"""Chooses the engine of a call. Pure.

Policies: `round_robin`, `least_used`, `program_locality` (Algorithm 2 of the paper) and `prefix_aware`, which compares
the prefill time that an engine's cached context saves with the time a call would queue there.

Only an engine that has context of the program can be better for it than the order of its group says (ranking.py). So
the candidates are these engines, at most MAX_OF_PROGRAM, and the first few of each group: a choice does not look at the
others. Equal engines take turns: the least recently chosen one is first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Set
from itertools import islice

import msgspec
from agentserving.contract.ids import EngineId, ProgramKey

from agentserving_controlplane.engines.contexts import MAX_REMEMBERED, Context, Contexts
from agentserving_controlplane.engines.engine import Engine
from agentserving_controlplane.engines.ranking import RANKED, Place, Pool, Rank, Standing, Trial
from agentserving_controlplane.engines.registry import BEAT_US, RETRY_S, EngineRegistry
from agentserving_controlplane.errors import NotFoundError, UnavailableError
from agentserving_controlplane.policy.version import Balancer

__all__ = ["SHORT_PROMPT_TOKENS", "Balancer", "LoadBalancer", "Wanted"]

# Algorithm 2: prompts up to this length go to the least used engine.
SHORT_PROMPT_TOKENS = 2048
# The chosen engine, and those on which a gateway may retry.
CHOICES = 3
# Engines that a refusal names.
MAX_NAMED = 8


class Wanted(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What an engine is chosen for. `holding`: engines that ran calls of the program, and may be draining."""

    program: ProgramKey
    prompt_tokens: int = 0
    model: str = ""
    exclude: Set[EngineId] = frozenset()
    holding: Collection[EngineId] = ()


class LoadBalancer:
    """Chooses among the engines of a registry by `kind`; remembers where programs ran."""

    def __init__(self, engines: EngineRegistry, kind: Balancer = Balancer.PREFIX_AWARE) -> None:
        self._engines = engines
        self._ranking = engines.ranking
        self.contexts = Contexts()
        # Of programs with long prompts, for Algorithm 2.
        self._homes: OrderedDict[ProgramKey, EngineId] = OrderedDict()
        self.kind = kind

    @property
    def kind(self) -> Balancer:
        """How engines are chosen."""
        return self._kind

    @kind.setter
    def kind(self, kind: Balancer) -> None:
        self._kind = kind
        self._ranking.use(kind)

    def choose_many(self, wanted: Wanted, now_us: int, count: int = CHOICES) -> list[Engine]:
        """The engine for a call, followed by at most `count - 1` engines to fall back to, in order of preference.

        UnavailableError when no engine can take the call, NotFoundError when none serves the model.
        """
        self._engines.refresh()
        places = self._places(wanted, now_us, count)
        if not places:
            raise self._refusal(wanted, now_us)
        self._ranking.choose(places[0])
        self._engines.changed.add(places[0].engine.engine_id)
        if self._prefers_home(wanted):
            self._settle(wanted.program, places[0].engine.engine_id)
        return [place.engine for place in places]

    def ran(self, program: ProgramKey, engine: Engine, tokens: int) -> None:
        """A call of the program ended on the engine with `tokens` of context."""
        self.contexts.ran(program, engine.engine_id, Context(tokens, engine.load.prefilled_tokens))

    def _settle(self, program: ProgramKey, engine_id: EngineId) -> None:
        self._homes[program] = engine_id
        self._homes.move_to_end(program)
        if len(self._homes) > MAX_REMEMBERED:
            self._homes.popitem(last=False)

    # -- candidates ----------------------------------------------------------------------------------------------

    def _places(self, wanted: Wanted, now_us: int, count: int) -> list[Place]:
        """A due trial first, then the best of the first of: ready, draining, failing, stuck engines."""
        pools = self._ranking.pools(wanted.model)
        trial = _due_trial(pools, wanted.exclude, now_us)
        if trial is None and (found := self._best(Standing.READY, pools, wanted, now_us, count)):
            return found
        first = [] if trial is None else [trial]
        for standing in (Standing.READY, Standing.DRAINING, Standing.FAILING, Standing.STUCK):
            found = self._best(standing, pools, wanted, now_us, count)
            if found:
                return [*first, *(place for place in found if place is not trial)][:count]
        return first

    def _best(self, standing: Standing, pools: list[Pool], wanted: Wanted, now_us: int, count: int) -> list[Place]:
        """At most `count` engines of one standing, the best first."""
        exclude, apart = wanted.exclude, self._apart(wanted, standing)
        # A stuck engine must have been heard since; all others pass.
        heard_after_us = now_us - BEAT_US if standing is Standing.STUCK else -1
        prices = self._kind is Balancer.PREFIX_AWARE
        found: list[Rank] = []
        for pool in pools if standing in RANKED else ():
            room, unit = count, pool.call_us if prices else 1
            prefill = pool.cost(0, wanted.prompt_tokens) if prices else 0
            for load, chosen, joined, place in pool.groups[standing]:
                engine = place.engine
                engine_id = engine.engine_id
                if engine_id in exclude or engine_id in apart or engine.heard_us < heard_after_us:
                    continue
                found.append((load * unit + prefill, chosen, joined, place))
                room -= 1
                if not room:
                    break
        places = self._ranking.places
        for engine_id in apart:
            known = places.get(engine_id)
            if known is None or known.standing is not standing or engine_id in exclude:
                continue
            if known.pool.serves(wanted.model) and known.engine.heard_us >= heard_after_us:
                found.append((self._load(known, wanted), known.chosen, known.joined, known))
        if len(found) > 1:
            found.sort()
        return [rank[3] for rank in found[:count]]

    def _apart(self, wanted: Wanted, standing: Standing) -> Collection[EngineId]:
        """Engines whose place in their group says too little: those with context, and draining ones."""
        if standing is Standing.DRAINING:
            return wanted.holding
        if self._kind is Balancer.PREFIX_AWARE:
            return self.contexts.of(wanted.program)
        home = self._homes.get(wanted.program) if self._prefers_home(wanted) else None
        return () if home is None else (home,)

    def _load(self, place: Place, wanted: Wanted) -> int:
        """What the engine costs for this call, which may find context of its program there."""
        engine = place.engine
        if self._kind is Balancer.PREFIX_AWARE:
            tokens = wanted.prompt_tokens
            context = self.contexts.of(wanted.program).get(engine.engine_id)
            missing = tokens - context.hit_tokens(tokens, engine) if context is not None else tokens
            return place.pool.cost(place.load, missing)
        is_home = self._prefers_home(wanted) and self._homes.get(wanted.program) == engine.engine_id
        return -1 if is_home else place.load

    def _prefers_home(self, wanted: Wanted) -> bool:
        return self._kind is Balancer.PROGRAM_LOCALITY and wanted.prompt_tokens > SHORT_PROMPT_TOKENS

    def _refusal(self, wanted: Wanted, now_us: int) -> NotFoundError | UnavailableError:
        """Why no engine can take a call."""
        others = self._places(msgspec.structs.replace(wanted, model=""), now_us, 1) if wanted.model else []
        if others:
            standing = others[-1].standing
            pools = [pool for pool in self._ranking.pools("") if standing in RANKED and pool.groups[standing]]
            names = sorted({name for pool in [others[-1].pool, *pools] for name in pool.models})
            return NotFoundError(
                "MODEL_NOT_FOUND", f"no engine serves {wanted.model!r}; served: {', '.join(names)}", field="model"
            )
        states = [f"{engine.engine_id} {engine.state.name}" for engine in islice(self._engines, MAX_NAMED)]
        if len(self._engines.engines) > MAX_NAMED:
            states.append(f"and {len(self._engines.engines) - MAX_NAMED} more")
        return UnavailableError(
            "NO_ENGINE",
            f"no engine can take a call ({', '.join(states) or 'none has attached'})",
            retry_after_s=RETRY_S,
        )


def _due_trial(pools: list[Pool], exclude: Set[EngineId], now_us: int) -> Place | None:
    """The engine whose ejection ended first, if it is over. One call decides whether it comes back: waiting for the
    load balancer to prefer it might take long."""
    due: list[Trial] = []
    for pool in pools:
        for trial in pool.trials:
            if trial.after_us > now_us:
                break
            if trial.place.engine.engine_id not in exclude:
                due.append(trial)
                break
    return min(due).place if due else None
