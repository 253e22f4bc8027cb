"""What the four example agents share: a connection, dice for sizes, and one LLM call."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import openai


@dataclass
class ProgramResult:
    """One program, as its user saw it."""

    program_id: str
    shape: str
    arrival_s: float
    latency_s: float = 0.0
    output_tokens: int = 0
    calls: int = 0
    failed: bool = False
    error: str = ""


@dataclass
class Agent:
    """A program's connection and its dice."""

    client: openai.AsyncOpenAI
    model: str
    dice: random.Random
    scale: float
    result: ProgramResult
    headers: dict[str, str] = field(default_factory=dict)
    # Begins every prompt, so that the same load run again finds nothing of the first run in a prefix cache.
    run: str = ""

    def draw(self, mu: float, sigma: float, low: int, high: int) -> int:
        """Tokens: lognormal, scaled, clipped."""
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
        # The tiny model babbles bytes: keep one character a token, so that contexts have the length they would have.
        return (answer.choices[0].message.content or "").encode("ascii", "replace").decode()[:tokens]


def text(agent: Agent, tokens: int) -> str:
    """A prompt of so many tokens (bytes, for the tiny model)."""
    return (agent.run + "".join(agent.dice.choice("etaoin shrdlu") for _ in range(tokens)))[:tokens]


def user(content: str) -> dict[str, str]:
    """A message."""
    return {"role": "user", "content": content}
