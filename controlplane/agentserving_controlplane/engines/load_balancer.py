"""Which engine runs a call. Pure: candidates in, choice out.

`least_used`, `round_robin`, Algorithm 2 of the paper (`program_locality`), and `prefix_aware`, which weighs the prefill
that an engine would save against the queue one would wait in, both in time. What an engine still holds of a program is
estimated from what the program ran there and how much that engine prefilled since; no prompt is read for it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

SHORT_PROMPT_TOKENS = 2048
MAX_REMEMBERED = 200_000
# Share of a program's context that its next call finds again where nothing was evicted (paper: > 90 %).
PREFIX_SHARE = 0.9


class Balancer(StrEnum):
    """The choices there are."""

    ROUND_ROBIN = "round_robin"
    LEAST_USED = "least_used"
    PROGRAM_LOCALITY = "program_locality"
    PREFIX_AWARE = "prefix_aware"


@dataclass(slots=True)
class Candidate:
    """An engine that may take the call. `prefill_us_per_token` and `call_us` are learned averages."""

    engine_id: str
    in_flight: int
    max_num_seqs: int
    capacity_tokens: int
    prefilled_tokens: int
    prefill_us_per_token: float = 50.0
    call_us: float = 500_000.0


@dataclass(slots=True)
class _Held:
    tokens: int
    at_prefilled: int


@dataclass(slots=True)
class LoadBalancer:
    """Remembers where programs ran; decides by `kind`."""

    kind: Balancer = Balancer.PREFIX_AWARE
    _turn: int = 0
    _home: OrderedDict[str, str] = field(default_factory=OrderedDict)
    _held: OrderedDict[tuple[str, str], _Held] = field(default_factory=OrderedDict)

    def choose(self, program: str, prompt_tokens: int, candidates: list[Candidate]) -> Candidate:
        """The engine for a call of a (root) program. `candidates` must not be empty."""
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
        # Ties go round, else an idle cluster would run everything on its first engine.
        size = len(candidates)
        return min(enumerate(candidates), key=lambda item: (item[1].in_flight, (item[0] - self._turn) % size))[1]

    def _locality(self, program: str, prompt_tokens: int, candidates: list[Candidate]) -> Candidate:
        """Algorithm 2: short prompts anywhere, long ones to the program's own engine."""
        if prompt_tokens <= SHORT_PROMPT_TOKENS:
            return self._least_used(candidates)
        home = self._home.get(program)
        for candidate in candidates:
            if candidate.engine_id == home:
                return candidate
        chosen = self._least_used(candidates)
        self._home[program] = chosen.engine_id
        if len(self._home) > MAX_REMEMBERED:
            self._home.popitem(last=False)
        return chosen

    def _expected_us(self, program: str, prompt_tokens: int, engine: Candidate) -> float:
        excess = max(0, engine.in_flight + 1 - engine.max_num_seqs)
        queueing = excess * engine.call_us / max(1, engine.max_num_seqs)
        # A batch that is not full still slows its members a little: spread out when all else is equal.
        sharing = 0.05 * engine.call_us * min(1.0, engine.in_flight / max(1, engine.max_num_seqs))
        missing = max(0.0, prompt_tokens - self.expected_hit(program, prompt_tokens, engine))
        return queueing + sharing + missing * engine.prefill_us_per_token

    def expected_hit(self, program: str, prompt_tokens: int, engine: Candidate) -> float:
        """Prompt tokens that the engine is expected to find in its prefix cache."""
        held = self._held.get((program, engine.engine_id))
        if held is None:
            return 0.0
        since = max(0, engine.prefilled_tokens - held.at_prefilled)
        alive = max(0.0, 1.0 - since / engine.capacity_tokens) if engine.capacity_tokens else 0.0
        return min(prompt_tokens * PREFIX_SHARE, held.tokens * alive)

    def ran(self, program: str, engine_id: str, tokens: int, prefilled_tokens: int) -> None:
        """A call of the program ended there with `tokens` of context, when the engine had prefilled so much."""
        self._held[(program, engine_id)] = _Held(tokens, prefilled_tokens)
        self._held.move_to_end((program, engine_id))
        if len(self._held) > MAX_REMEMBERED:
            self._held.popitem(last=False)
