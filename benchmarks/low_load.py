"""Added latency far below saturation, compared with stock vLLM called directly: of the plugin, and of everything.

One program runs at a time, so nothing queues and every added millisecond is visible. Each side runs a program of the
same lengths in turn, in a random order, so that a slow second of the machine affects all sides alike. Tokens differ,
because three of the five sides share a prefix cache.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, stock_vllm, use_policy
from benchmarks.policies import BATCH
from benchmarks.validation import Caller

ROUNDS, CALLS, TOKENS = 30, 6, 40
# vLLM's processes spin for a second after their last work; the previous side must not take this one's core.
QUIET_S = 1.3
# "again" is stock vLLM a second time: its distance from itself is the resolution of this machine.
SIDES = ("stock", "again", "plugin", "fcfs", "plas")


async def program(caller: Caller, name: str) -> float:
    """Seconds of a conversation of CALLS turns."""
    await asyncio.sleep(QUIET_S)
    began = time.perf_counter()
    context: list[int] = []
    for _ in range(CALLS):
        prompt = context + caller.fresh(60)
        context = prompt + await caller.call(prompt, TOKENS, name)
    return time.perf_counter() - began


async def low_load() -> dict[str, Any]:
    """Seconds of every program on every side, round by round."""
    rounds: list[dict[str, float]] = []
    async with stock_vllm(BATCH) as (stock, _), cluster(engines=1, max_num_seqs=BATCH) as (running, admin):
        plugin = f"http://127.0.0.1:{running.ports.engines[0].http}/v1"
        urls = {
            "stock": stock,
            "again": stock,
            "plugin": plugin,
            "fcfs": running.gateway_url,
            "plas": running.gateway_url,
        }
        clients = {
            side: httpx.AsyncClient(base_url=f"{url}/", timeout=300, trust_env=False) for side, url in urls.items()
        }
        callers = {side: Caller(client, seed) for seed, (side, client) in enumerate(clients.items())}
        for number in range(-2, ROUNDS):
            took = {}
            for side in random.Random(number).sample(SIDES, len(SIDES)):
                if side in ("fcfs", "plas"):
                    await use_policy(admin, side)
                took[side] = await program(callers[side], f"{side}-{number}")
            if number >= 0:
                rounds.append(took)
        for client in clients.values():
            await client.aclose()
    return {"rounds": rounds, "calls": CALLS, "tokens": TOKENS}


def measure() -> Any:
    """Runs the benchmark; gives its raw figures."""
    return asyncio.run(low_load())


def summarise(raw: Any) -> list[Bar]:
    """The bars of raw figures."""
    return [
        bar(
            f"low-load-{side}", [took[side] / took["stock"] for took in raw["rounds"]], "<= 1.02", "ratio",
            "stock vLLM, one program at a time",
        )
        for side in SIDES[1:]
    ]  # fmt: skip
