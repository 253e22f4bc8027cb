"""A request in the simulated engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Finished:
    """The end of a request: "length" or "abort"."""

    reason: str


@dataclass(slots=True)
class SimRequest:
    """`computed` tokens have their KV; preemption sets it to 0 and they are computed again."""

    request_id: str
    prompt_tokens: int
    max_tokens: int
    computed: int = 0
    generated: int = 0
    scheduled: int = 0
    # One int per token (its index), then Finished.
    outputs: asyncio.Queue[int | Finished] = field(default_factory=asyncio.Queue)

    @property
    def total(self) -> int:
        """Tokens known: prompt and output."""
        return self.prompt_tokens + self.generated

    def blocks(self, block_size: int) -> int:
        """KV blocks held."""
        return -(-self.computed // block_size)
