"""Calls on an engine in virtual time, and what is counted of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_engine.policy import CallFacts, CallStats

from agentserving_simulator.virtual.context_cache import Holding, Path


@dataclass(slots=True, eq=False)
class Request:
    """One call on the engine. `computed` counts tokens with KV; it produces a token when it has caught up."""

    key: str
    path: Path
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0
    cached: int = -1
    held: Holding | None = None
    ready_us: int = 0
    first_token_us: int = 0
    facts: CallFacts | None = None

    @property
    def total(self) -> int:
        """Prompt and what has been generated."""
        return self.prompt + self.generated


@dataclass(slots=True)
class Counters:
    """Since the start."""

    steps: int = 0
    busy_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    loaded_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    preemptions_proactive: int = 0
    preemptions_reactive: int = 0
    # Calls in the engine, integrated over time.
    call_us: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that has all its tokens."""

    request: Request
    stats: CallStats
    at_us: int
