"""A request in the simulated engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agentserving_simulator.tokens import block_hash, word


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request: "length" or "abort"."""

    reason: str


# (choice, text of a token), and at its end (choice, Finished).
Outputs = asyncio.Queue[tuple[int, "str | Finished"]]


@dataclass(slots=True)
class SimRequest:
    """`tokens` are the prompt's, then the answer's; the first `computed` of them have their KV in `blocks`."""

    request_id: str
    tokens: list[str]
    max_tokens: int
    seed: int = 0
    choice: int = 0
    # Several requests of one call may share a queue: their tokens come as they are made.
    outputs: Outputs = field(default_factory=asyncio.Queue)
    computed: int = 0
    scheduled: int = 0
    cached_tokens: int = 0
    started: bool = False
    blocks: list[int] = field(default_factory=list)
    prompt_tokens: int = field(init=False)
    _hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def total(self) -> int:
        """Tokens known: prompt and answer."""
        return len(self.tokens)

    def produce(self) -> None:
        """One more token of the answer."""
        token = word(self.seed, self.generated)
        self.tokens.append(token)
        self.outputs.put_nowait((self.choice, token))

    def hashes(self, block_size: int) -> list[bytes]:
        """Of every full block of the tokens known."""
        known = self._hashes
        for start in range(len(known) * block_size, self.total - block_size + 1, block_size):
            known.append(block_hash(known[-1] if known else b"", self.tokens[start : start + block_size]))
        return known
