"""Four kinds of agent program, written with the plain OpenAI SDK: they know nothing of agentserving but a header.

chatbot (ShareGPT), ReAct with tools (BFCL), map-reduce, and tree search (LATS); sizes are drawn from the generators
that match the paper's tables, times `scale`. Run against any OpenAI-compatible address:

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python examples/mixed_load.py
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import openai

# The tiny model reads 8192 tokens of one byte each: leave room for what it writes.
MAX_CONTEXT_CHARS = 6000


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


@dataclass(frozen=True)
class Progress:
    """How far the load is."""

    done: int
    started: int
    total: int


@dataclass
class Agent:
    """A program's connection and its dice."""

    client: openai.AsyncOpenAI
    model: str
    dice: random.Random
    scale: float
    result: ProgramResult
    headers: dict[str, str] = field(default_factory=dict)

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
        return answer.choices[0].message.content or ""


def text(agent: Agent, tokens: int) -> str:
    """A prompt of so many tokens (bytes, for the tiny model)."""
    return "".join(agent.dice.choice("etaoin shrdlu") for _ in range(tokens))


def user(content: str) -> dict[str, str]:
    """A message."""
    return {"role": "user", "content": content}


async def chatbot(agent: Agent) -> None:
    """A conversation: each turn sends all before it."""
    history: list[dict[str, str]] = []
    turns = max(1, min(12, round(agent.dice.lognormvariate(1.153, 1.0))))
    for _ in range(turns):
        history.append(user(text(agent, agent.draw(4.375, 1.2, 4, 800))))
        answer = await agent.call(history, agent.draw(5.152, 1.0, 4, 512))
        history.append({"role": "assistant", "content": answer[:400]})
        if sum(len(m["content"]) for m in history) > MAX_CONTEXT_CHARS:
            return


async def react(agent: Agent) -> None:
    """Think, use a tool, think again."""
    history = [user(text(agent, agent.draw(6.477, 0.5, 50, 1500)))]
    for step in range(max(3, round(agent.dice.gauss(7, 2)))):
        thought = await agent.call(history, agent.draw(3.353, 0.6, 4, 128))
        history.append({"role": "assistant", "content": thought[:200]})
        await asyncio.sleep(agent.dice.uniform(0.02, 0.15))
        history.append(user(f"tool result {step}: {text(agent, 40)}"))


async def map_reduce(agent: Agent) -> None:
    """Parts in parallel, then one call over all."""
    width = agent.dice.randint(3, 6)
    document = [text(agent, agent.draw(6.0, 0.5, 50, 900)) for _ in range(width)]
    parts = await asyncio.gather(
        *(agent.call([user(part)], agent.draw(4.1, 0.5, 8, 200), f"map-{i}") for i, part in enumerate(document))
    )
    await agent.call([user("\n".join(part[:300] for part in parts))], agent.draw(4.8, 0.5, 16, 300), "reduce")


async def mcts(agent: Agent) -> None:
    """Tree search: samples in parallel, evaluations in parallel, again and again."""
    path = [user(text(agent, agent.draw(6.047, 0.45, 50, 900)))]
    solved = agent.dice.uniform(0.15, 0.6)
    for iteration in range(8):
        samples = await asyncio.gather(
            *(agent.call(path, agent.draw(4.136, 0.55, 8, 160), f"{iteration}-sample-{i}") for i in range(4))
        )
        await asyncio.gather(
            *(
                agent.call([*path, user(s[:150] + "?")], agent.draw(3.0, 0.4, 4, 40), f"{iteration}-judge-{i}")
                for i, s in enumerate(samples)
            )
        )
        path = [*path[:6], user(samples[0][:150])]
        if agent.dice.random() < solved:
            return


SHAPES: dict[str, Callable[[Agent], Awaitable[None]]] = {
    "chatbot": chatbot,
    "react": react,
    "map-reduce": map_reduce,
    "mcts": mcts,
}


async def _run_one(agent: Agent, shape: str) -> None:
    began = time.monotonic()
    try:
        await SHAPES[shape](agent)
    except openai.OpenAIError as error:
        agent.result.failed = True
        agent.result.error = str(error)[:200]
    agent.result.latency_s = time.monotonic() - began


async def run_mixed_load(
    base_url: str,
    model: str,
    *,
    programs: int,
    rate_per_s: float,
    seed: int,
    scale: float = 1.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ProgramResult]:
    """`programs` programs, a quarter of each shape, Poisson arrivals. The same seed gives the same load."""
    dice = random.Random(seed)
    names = [list(SHAPES)[i % len(SHAPES)] for i in range(programs)]
    dice.shuffle(names)
    run = uuid.uuid4().hex[:6]
    results: list[ProgramResult] = []
    done = 0
    began = time.monotonic()

    def finished(_: object) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(Progress(done, len(results), programs))

    client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600)
    async with client, asyncio.TaskGroup() as group:
        due = 0.0
        for index, shape in enumerate(names):
            due += -math.log(1 - dice.random()) / rate_per_s
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            program = f"{shape}-{run}-{index}"
            result = ProgramResult(program, shape, time.monotonic() - began)
            results.append(result)
            headers = {"x-agentserving-program-id": program, "x-agentserving-program-name": shape}
            agent = Agent(client, model, random.Random(f"{seed}-{index}"), scale, result, headers)
            group.create_task(_run_one(agent, shape)).add_done_callback(finished)
    return results


def main() -> None:
    """A small load against OPENAI_BASE_URL."""
    base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
    for result in asyncio.run(run_mixed_load(base_url, "tiny", programs=8, rate_per_s=2, seed=1, scale=0.3)):
        state = f"failed: {result.error}" if result.failed else f"{result.output_tokens} tokens, {result.calls} calls"
        print(f"{result.program_id:<28} {result.latency_s:6.2f} s  {state}")


if __name__ == "__main__":
    main()
