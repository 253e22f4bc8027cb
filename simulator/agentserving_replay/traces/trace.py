"""What a program is, without its text: calls, tokens, times, and which calls must have ended before which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call. Indices name calls of the same program, earlier ones only."""

    # Tokens of the whole prompt, what it repeats of earlier calls included.
    prompt_tokens: int
    output_tokens: int
    # It is made when these have ended, and its tool, if any, has taken `gap_s`.
    parents: tuple[int, ...] = ()
    gap_s: float = 0.0
    # Its prompt begins with so many tokens of this call's context (prompt and output); -1: of the system prompt.
    extends: int = -1
    shared_tokens: int = 0
    thread: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """One run of an agent. `name` is its class; programs of one name share the system prompt."""

    program_id: str
    name: str
    arrival_s: float
    calls: tuple[Call, ...]

    @property
    def output_tokens(self) -> int:
        """Of all calls."""
        return sum(call.output_tokens for call in self.calls)
