"""A load of the four example agents, written with the plain OpenAI SDK: they know of agentserving by a header only.

Sizes are drawn from generators that match the paper's tables, times `scale`. Run against any OpenAI-compatible address:

    OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python -m examples.mixed_load
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import openai

from examples.agent import Agent, ProgramResult
from examples.chatbot import chatbot
from examples.map_reduce import map_reduce
from examples.mcts import mcts
from examples.react import react


@dataclass(frozen=True)
class Progress:
    """How far the load is."""

    done: int
    started: int
    total: int


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
    shapes: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ProgramResult]:
    """`programs` programs, equally many of each shape, Poisson arrivals. The same seed gives the same load."""
    dice = random.Random(seed)
    kinds = list(shapes or SHAPES)
    names = [kinds[i % len(kinds)] for i in range(programs)]
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
            agent = Agent(client, model, random.Random(f"{seed}-{index}"), scale, result, headers, run)
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
