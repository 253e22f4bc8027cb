"""What the four kinds of programs share: a connection, a random generator for sizes, and one LLM call."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import openai


@dataclass(slots=True, kw_only=True)
class ProgramResult:
    """One program, as its user saw it. `arrival_s` counts from the start of the load."""

    program_id: str
    shape: str
    arrival_s: float
    latency_s: float = 0.0
    output_tokens: int = 0
    calls: int = 0
    failed: bool = False
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Agent:
    """A program's connection and its random generator; `scale` multiplies token counts."""

    client: openai.AsyncOpenAI
    model: str
    dice: random.Random
    scale: float
    result: ProgramResult
    headers: dict[str, str] = field(default_factory=dict)
    # First bytes of every prompt: a second run of the same load must not hit the prefix cache of the first.
    run: str = ""

    def draw(self, mu: float, sigma: float, low: int, high: int) -> int:
        """A token count: lognormal, scaled, clipped."""
        return max(low, min(high, round(self.dice.lognormvariate(mu, sigma) * self.scale)))

    async def call(self, messages: list[dict[str, str]], tokens: int, thread: str = "") -> str:
        """One LLM call of exactly `tokens` output tokens."""
        headers = {**self.headers, "x-agentserving-thread-id": thread} if thread else self.headers
        answer = await self.client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            max_tokens=tokens,
            extra_headers=headers,
            extra_body={"ignore_eos": True},
        )
        self.result.calls += 1
        self.result.output_tokens += answer.usage.completion_tokens if answer.usage else tokens
        # The tiny model generates random bytes: one character a token keeps contexts at their length.
        return (answer.choices[0].message.content or "").encode("ascii", "replace").decode()[:tokens]


def text(agent: Agent, tokens: int) -> str:
    """A random prompt of `tokens` tokens (bytes, for the tiny model)."""
    return (agent.run + "".join(agent.dice.choice("etaoin shrdlu") for _ in range(tokens)))[:tokens]


def user(content: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": content}
