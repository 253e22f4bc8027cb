"""The engines that a gateway knows: which may be called, and which one takes a call without the control plane. Pure.

The leader sends the whole set at each change, with a state for each engine. Two facts are the gateway's own: engines
that failed a connection a moment ago are avoided before the leader knows of it, and a new leader's empty set is not
believed until its engines had the time to attach.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from agentserving.contract.ids import EngineId

# Sidecars report a crashed engine within 2 s and a hung one within 5 s; after that the leader's word is enough.
AVOID_S = 5.0


@dataclass(frozen=True, slots=True)
class Engine:
    """`is_ready`: the leader sends it calls. `models`: what it serves, as far as its sidecar has learned it."""

    engine_id: EngineId
    address: str
    is_ready: bool = True
    models: frozenset[str] = frozenset()

    def may_serve(self, model: str) -> bool:
        """False only when it is known to serve other models."""
        return not model or not self.models or model in self.models


class Engines:
    """Instants are seconds of the monotonic clock."""

    def __init__(self, engines: Iterable[Engine] = ()) -> None:
        self._all = list(engines)
        self._before: list[Engine] = list(self._all)
        self._differ = self._before_differ = _models_differ(self._all)
        self._avoid_until: dict[EngineId, float] = {}
        self._turn = 0

    def replace(self, engines: Iterable[Engine]) -> None:
        """The leader's newest set."""
        if self._all:
            self._before, self._before_differ = self._all, self._differ
        self._all = list(engines)
        self._differ = _models_differ(self._all)

    def known(self, *, settled: bool) -> list[Engine]:
        """The newest set. While the leader has not `settled`, its empty set stands for the one before."""
        return self._all or ([] if settled else self._before)

    def models_differ(self, *, settled: bool) -> bool:
        """True when known engines serve different models."""
        return self._differ if self._all or settled else self._before_differ

    def avoid(self, engine_id: EngineId, now_s: float) -> None:
        """It did not take a connection, or broke it before an answer."""
        self._avoid_until[engine_id] = now_s + AVOID_S

    def trust(self, engine_id: EngineId) -> None:
        """The engine answered: it is avoided no longer."""
        if self._avoid_until:
            self._avoid_until.pop(engine_id, None)

    def avoided(self, now_s: float) -> frozenset[EngineId]:
        """Engines that failed within the last AVOID_S seconds."""
        if not self._avoid_until:
            return frozenset()
        self._avoid_until = {engine_id: until for engine_id, until in self._avoid_until.items() if until > now_s}
        return frozenset(self._avoid_until)

    def ready(self, model: str = "", *, exclude: Collection[EngineId] = (), settled: bool = True) -> list[Engine]:
        """Engines that take calls for a model now; those of another model only when none serves it."""
        ready = [e for e in self.known(settled=settled) if e.is_ready and e.engine_id not in exclude]
        return [engine for engine in ready if engine.may_serve(model)] or ready

    def in_turn(
        self, now_s: float, model: str = "", *, exclude: Collection[EngineId] = (), settled: bool = True
    ) -> Engine | None:
        """The next ready engine, round robin; one that failed a moment ago only when there is no other."""
        ready = self.ready(model, exclude=exclude, settled=settled)
        avoided = self.avoided(now_s)
        choice = [engine for engine in ready if engine.engine_id not in avoided] or ready
        self._turn += 1
        return choice[self._turn % len(choice)] if choice else None

    def by_program(
        self, key: str, now_s: float, model: str = "", *, exclude: Collection[EngineId] = (), settled: bool = False
    ) -> Engine | None:
        """The engine of a program while no leader chooses one: rendezvous hashing keeps a program on its engine.

        States are as old as the leader's last message, so an engine that was not ready is better than none.
        """
        left = [engine for engine in self.known(settled=settled) if engine.engine_id not in exclude]
        serving = [engine for engine in left if engine.may_serve(model)] or left
        avoided = self.avoided(now_s)
        ready = [engine for engine in serving if engine.is_ready]
        choice = [engine for engine in ready if engine.engine_id not in avoided] or ready or serving
        if not choice:
            return None
        return max(choice, key=lambda engine: _weight(key, engine.engine_id))


def _models_differ(engines: Iterable[Engine]) -> bool:
    return len({engine.models for engine in engines if engine.models}) > 1


def _weight(key: str, engine_id: EngineId) -> bytes:
    return hashlib.blake2b(f"{key}\x00{engine_id}".encode(), digest_size=8).digest()
