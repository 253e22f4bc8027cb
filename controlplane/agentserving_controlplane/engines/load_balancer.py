"""Chooses the engine of a call. Pure: candidates in, choice out.

Policies: `round_robin`, `least_used`, `program_locality` (Algorithm 2 of the paper) and `prefix_aware`, which compares
the prefill time that an engine's cached context saves with the time a call would queue there. The cached context is
estimated from what the program ran on the engine and how much the engine has prefilled since; prompts are not read.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec
from agentserving.contract.ids import EngineId, ProgramKey

from agentserving_controlplane.policy.version import Balancer

__all__ = ["CALL_US", "PREFILL_US_PER_TOKEN", "SHORT_PROMPT_TOKENS", "Balancer", "Candidate", "LoadBalancer"]

# Algorithm 2: prompts up to this length go to the least used engine.
SHORT_PROMPT_TOKENS = 2048
MAX_REMEMBERED = 200_000
# Share of a program's context that its next call finds again where nothing was evicted (paper: > 90 %).
PREFIX_SHARE = 0.9
# Until an engine has measured its own: 8B parameters on one A100 take 30 to 100 us a token, and calls are seconds.
PREFILL_US_PER_TOKEN, CALL_US = 50.0, 500_000.0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that may take the call.

    `prefill_us_per_token` is measured by the engine, `call_us` is the smoothed service time of its calls; both have
    defaults until then (registry.py). `prefilled_tokens` counts prompt tokens computed since the engine's boot.
    """

    engine_id: EngineId
    in_flight: int
    max_num_seqs: int
    capacity_tokens: int
    prefilled_tokens: int
    prefill_us_per_token: float = PREFILL_US_PER_TOKEN
    call_us: float = CALL_US


@dataclass(slots=True)
class _Context:
    """Tokens of a program that an engine had cached when it had prefilled `at_prefilled` tokens."""

    tokens: int
    at_prefilled: int


@dataclass(slots=True)
class LoadBalancer:
    """Chooses by `kind`; remembers where programs ran. Programs are roots: a tree shares its context."""

    kind: Balancer = Balancer.PREFIX_AWARE
    _turn: int = 0
    _home: OrderedDict[ProgramKey, EngineId] = field(default_factory=OrderedDict)
    _contexts: OrderedDict[tuple[ProgramKey, EngineId], _Context] = field(default_factory=OrderedDict)

    def choose(self, program: ProgramKey, prompt_tokens: int, candidates: list[Candidate]) -> Candidate:
        """The engine for a call. `candidates` must not be empty."""
        match self.kind:
            case Balancer.ROUND_ROBIN:
                chosen = candidates[self._turn % len(candidates)]
            case Balancer.LEAST_USED:
                chosen = self._least_used(candidates)
            case Balancer.PROGRAM_LOCALITY:
                chosen = self._locality(program, prompt_tokens, candidates)
            case Balancer.PREFIX_AWARE:
                chosen = min(
                    enumerate(candidates),
                    key=lambda item: (
                        self._expected_us(program, prompt_tokens, item[1]),
                        (item[0] - self._turn) % len(candidates),
                    ),
                )[1]
        self._turn += 1
        return chosen

    def _least_used(self, candidates: list[Candidate]) -> Candidate:
        # Ties rotate: otherwise an idle cluster would run everything on its first engine.
        size = len(candidates)
        return min(enumerate(candidates), key=lambda item: (item[1].in_flight, (item[0] - self._turn) % size))[1]

    def _locality(self, program: ProgramKey, prompt_tokens: int, candidates: list[Candidate]) -> Candidate:
        """Algorithm 2: short prompts to the least used engine, long ones to the program's own engine."""
        if prompt_tokens <= SHORT_PROMPT_TOKENS:
            return self._least_used(candidates)
        home = self._home.get(program)
        for candidate in candidates:
            if candidate.engine_id == home:
                self._home.move_to_end(program)
                return candidate
        chosen = self._least_used(candidates)
        self._home[program] = chosen.engine_id
        self._home.move_to_end(program)
        if len(self._home) > MAX_REMEMBERED:
            self._home.popitem(last=False)
        return chosen

    def _expected_us(self, program: ProgramKey, prompt_tokens: int, engine: Candidate) -> float:
        excess = max(0, engine.in_flight + 1 - engine.max_num_seqs)
        queueing = excess * engine.call_us / max(1, engine.max_num_seqs)
        # Each call slows its batch a little, even a batch that is not full: spread out when all else is equal.
        sharing = 0.05 * engine.call_us * min(1.0, engine.in_flight / max(1, engine.max_num_seqs))
        missing = max(0.0, prompt_tokens - self.expected_hit(program, prompt_tokens, engine))
        return queueing + sharing + missing * engine.prefill_us_per_token

    def expected_hit(self, program: ProgramKey, prompt_tokens: int, engine: Candidate) -> float:
        """Prompt tokens that the engine is expected to find in its prefix cache."""
        context = self._contexts.get((program, engine.engine_id))
        # A smaller count means that the engine has booted since: its cache is empty.
        if context is None or engine.prefilled_tokens < context.at_prefilled:
            return 0.0
        since = engine.prefilled_tokens - context.at_prefilled
        alive = max(0.0, 1.0 - since / engine.capacity_tokens) if engine.capacity_tokens else 0.0
        return min(prompt_tokens * PREFIX_SHARE, context.tokens * alive)

    def ran(self, program: ProgramKey, engine_id: EngineId, tokens: int, prefilled_tokens: int) -> None:
        """A call of the program ended on the engine with `tokens` of context; the engine had prefilled so much."""
        self._contexts[(program, engine_id)] = _Context(tokens, prefilled_tokens)
        self._contexts.move_to_end((program, engine_id))
        if len(self._contexts) > MAX_REMEMBERED:
            self._contexts.popitem(last=False)
