"""A request in the simulated engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

from agentserving_simulator.tokens import block_hash, word


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request; `reason` is "stop" (by itself), "length" (max_tokens, context) or "abort"."""

    reason: str


# (choice, text of a token), and at its end (choice, Finished).
Outputs = asyncio.Queue[tuple[int, "str | Finished"]]


@dataclass(slots=True)
class SimRequest:
    """`tokens`: the prompt, then the answer; the KV of the first `computed` of them is in `blocks`."""

    request_id: str
    tokens: list[str]
    max_tokens: int
    _: KW_ONLY
    seed: int = 0
    choice: int = 0
    # What it answers, token by token; empty = placeholder words.
    answer: Sequence[str] = ()
    # Tokens after which it ends by itself; None = never.
    ends_after: int | None = None
    # Separates prefix caches, as vLLM's `cache_salt`.
    salt: str = ""
    # Requests of one HTTP request may share a queue: their tokens arrive as they are produced.
    outputs: Outputs = field(default_factory=asyncio.Queue)
    computed: int = 0
    scheduled: int = 0
    cached_tokens: int = 0
    # It has run before: then its prompt is counted.
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
        """Tokens of the prompt and of the answer so far."""
        return len(self.tokens)

    def produce(self) -> None:
        """Adds a token to the answer."""
        token = self.answer[self.generated] if self.answer else word(self.seed, self.generated)
        self.tokens.append(token)
        self.outputs.put_nowait((self.choice, token))

    def end_reason(self, max_model_len: int) -> str:
        """Why the answer ends here; "" if it goes on."""
        if self.ends_after is not None and self.generated >= self.ends_after:
            return "stop"
        return "length" if self.generated >= self.max_tokens or self.total >= max_model_len else ""

    def hashes(self, block_size: int) -> list[bytes]:
        """Hashes of all full blocks of the tokens so far."""
        known = self._hashes
        for start in range(len(known) * block_size, self.total - block_size + 1, block_size):
            before = known[-1] if known else self.salt.encode()
            known.append(block_hash(before, self.tokens[start : start + block_size]))
        return known
