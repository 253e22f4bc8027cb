"""Calls on an engine in virtual time, and their counters. Pure."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import msgspec
from agentserving_engine.policy import CallFacts, CallStats

from agentserving_simulator.virtual.context_cache import Holding, Path


@dataclass(slots=True, eq=False)
class Request:
    """One call on the engine. `computed`: tokens with KV; when it reaches `total`, the step produces a token."""

    key: str
    path: Path
    prompt: int
    output: int
    _: KW_ONLY
    computed: int = 0
    generated: int = 0
    # Tokens found in the cache at the first start; -1 = not started yet.
    cached: int = -1
    # Those of them that were loaded from host memory.
    loaded: int = 0
    held: Holding | None = None
    ready_us: int = 0
    arrived_us: int = 0
    first_token_us: int = 0
    facts: CallFacts | None = None

    @property
    def total(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self.prompt + self.generated


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since the start; times in microseconds."""

    steps: int = 0
    busy_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    loaded_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    preemptions_proactive: int = 0
    preemptions_reactive: int = 0
    # Number of calls in the engine, integrated over time.
    call_us: int = 0


class Ended(msgspec.Struct, frozen=True):
    """A call that has produced all its tokens."""

    request: Request
    stats: CallStats
    at_us: int
