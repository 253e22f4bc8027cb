"""A load of four kinds of programs, written with the plain OpenAI SDK: two headers name each program.

Sizes are drawn from distributions that match the paper's tables, times `scale`. It runs against any OpenAI-compatible
address; `python -m examples.mixed_load` is a small one.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx
import openai

from agentserving_cli.load.agent import Agent, ProgramResult
from agentserving_cli.load.chatbot import chatbot
from agentserving_cli.load.coding import coding
from agentserving_cli.load.map_reduce import map_reduce
from agentserving_cli.load.mcts import mcts
from agentserving_cli.load.react import react


@dataclass(frozen=True, slots=True)
class Progress:
    """How many programs have begun and ended, of how many."""

    done: int
    started: int
    total: int


# By name; those of the paper are the default of a load.
PAPER = ("chatbot", "react", "map-reduce", "mcts")
SHAPES: dict[str, Callable[[Agent], Awaitable[None]]] = {
    "chatbot": chatbot,
    "react": react,
    "map-reduce": map_reduce,
    "mcts": mcts,
    "coding": coding,
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
    seed: int,
    rate_per_s: float = math.inf,
    most_open: int | None = None,
    scale: float = 1.0,
    api_key: str = "none",
    shapes: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> list[ProgramResult]:
    """`programs` programs, equally many of each shape; the same seed gives the same load.

    Poisson arrivals, but at most `most_open` programs at a time: then the next begins when one ends.
    """
    dice = random.Random(seed)
    kinds = list(shapes or PAPER)
    names = [kinds[i % len(kinds)] for i in range(programs)]
    dice.shuffle(names)
    run = uuid.uuid4().hex[:6]
    results: list[ProgramResult] = []
    done = 0
    began = time.monotonic()
    places = asyncio.Semaphore(most_open or programs)

    def finished(_: object) -> None:
        nonlocal done
        done += 1
        places.release()
        if on_progress is not None:
            on_progress(Progress(done, len(results), programs))

    # A proxy of the environment does not reach a server of this machine.
    is_local = httpx.URL(base_url).host in ("127.0.0.1", "localhost", "::1")
    transport = openai.DefaultAsyncHttpxClient(trust_env=not is_local)
    client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=600, http_client=transport)
    async with client, asyncio.TaskGroup() as group:
        due = 0.0
        for index, shape in enumerate(names):
            due += -math.log(1 - dice.random()) / rate_per_s
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            await places.acquire()
            program = f"{shape}-{run}-{index}"
            result = ProgramResult(program_id=program, shape=shape, arrival_s=time.monotonic() - began)
            results.append(result)
            headers = {"x-agentserving-program-id": program, "x-agentserving-program-name": shape}
            agent = Agent(
                client=client, model=model, dice=random.Random(f"{seed}-{index}"), scale=scale, result=result,
                headers=headers, run=run,
            )  # fmt: skip
            group.create_task(_run_one(agent, shape)).add_done_callback(finished)
    return results
