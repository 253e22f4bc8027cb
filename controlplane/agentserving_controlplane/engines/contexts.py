"""What engines are expected to have in their prefix caches, from what programs ran there. Pure.

Prompts are not read: the cached context of a program is estimated from its last call on an engine and from how much the
engine has prefilled since. Programs are roots: a tree shares its context.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from agentserving.contract.ids import EngineId, ProgramKey

from agentserving_controlplane.engines.engine import Engine

# Contexts of all programs, and of one: the least recently used are dropped.
MAX_REMEMBERED, MAX_OF_PROGRAM = 200_000, 16
# Share of a program's context that its next call finds again where nothing was evicted (paper: > 90 %).
PREFIX_SHARE = 0.9


class Context(NamedTuple):
    """Tokens of a program that an engine had cached when it had prefilled `at_prefilled` tokens."""

    tokens: int
    at_prefilled: int

    def hit_tokens(self, prompt_tokens: int, engine: Engine) -> float:
        """Prompt tokens that the engine is expected to find in its prefix cache."""
        prefilled, capacity = engine.load.prefilled_tokens, engine.capacity_tokens
        # A smaller count means that the engine has booted since: its cache is empty.
        if prefilled < self.at_prefilled or not capacity:
            return 0.0
        alive = max(0.0, 1.0 - (prefilled - self.at_prefilled) / capacity)
        return min(prompt_tokens * PREFIX_SHARE, self.tokens * alive)


NO_CONTEXTS: Mapping[EngineId, Context] = {}


class Contexts:
    """By program, then by engine, least recently used first."""

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._count = 0
        self._of_program: OrderedDict[ProgramKey, dict[EngineId, Context]] = OrderedDict()

    def of(self, program: ProgramKey) -> Mapping[EngineId, Context]:
        """Engines that may have context of a program."""
        return self._of_program.get(program, NO_CONTEXTS)

    def ran(self, program: ProgramKey, engine_id: EngineId, context: Context) -> None:
        """A call of the program ended on the engine and left this context."""
        contexts = self._of_program.setdefault(program, {})
        self._of_program.move_to_end(program)
        self._count += contexts.pop(engine_id, None) is None
        contexts[engine_id] = context
        if len(contexts) > MAX_OF_PROGRAM:
            del contexts[next(iter(contexts))]
            self._count -= 1
        while self._count > self._limit:
            self._count -= len(self._of_program.popitem(last=False)[1])
