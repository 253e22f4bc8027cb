"""What a program pays far below saturation, against stock vLLM called directly: for the plugin, and for everything.

One program at a time, so that nobody waits and every millisecond that we add is seen; the same program on each side in
turn, in a drawn order, so that a slow second of the machine hits all alike. Same lengths, other tokens: three of the
five sides share a prefix cache.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx
from agentserving.v1 import types_pb2

from benchmarks.bars import Bar, bar
from benchmarks.local import cluster, stock_vllm, use_policy
from benchmarks.policies import BATCH
from benchmarks.validation import Caller

ROUNDS, CALLS, TOKENS = 30, 6, 40
# vLLM's processes look for work for a second after the last: the side before must not take this one's core.
QUIET_S = 1.3
# "again" is stock vLLM once more: what it differs from itself is what this machine can tell apart.
SIDES = ("stock", "again", "plugin", "fcfs", "plas")


async def program(caller: Caller, name: str) -> float:
    """Seconds that a conversation of six turns takes."""
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
    async with stock_vllm(BATCH) as (stock, _), cluster(engines=1, max_num_seqs=BATCH) as (made, stubs):
        plugin = f"http://127.0.0.1:{made.ports.engines[0].http}/v1"
        urls = {"stock": stock, "again": stock, "plugin": plugin, "fcfs": made.gateway_url, "plas": made.gateway_url}
        clients = {
            side: httpx.AsyncClient(base_url=f"{url}/", timeout=300, trust_env=False) for side, url in urls.items()
        }
        callers = {side: Caller(client, seed) for seed, (side, client) in enumerate(clients.items())}
        for number in range(-2, ROUNDS):
            took = {}
            for side in random.Random(number).sample(SIDES, len(SIDES)):
                if side in ("fcfs", "plas"):
                    await use_policy(stubs, types_pb2.Policy(name=side))
                took[side] = await program(callers[side], f"{side}-{number}")
            if number >= 0:
                rounds.append(took)
        for client in clients.values():
            await client.aclose()
    return {"rounds": rounds, "calls": CALLS, "tokens": TOKENS}


def measure() -> tuple[list[Bar], Any]:
    """Bars and raw figures."""
    raw = asyncio.run(low_load())
    return [
        bar(
            f"low-load-{side}", [took[side] / took["stock"] for took in raw["rounds"]], "<= 1.02", "ratio",
            "stock vLLM, one program at a time",
        )
        for side in SIDES[1:]
    ], raw  # fmt: skip
