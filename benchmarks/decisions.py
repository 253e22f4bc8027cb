"""``python -m benchmarks.decisions ADDRESS SEED``: what a gateway waits for, on the gateway's own loop; prints JSON."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import uvloop
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import types_pb2
from agentserving_gateway.admission import Admission
from agentserving_gateway.identity import identify

PROGRAMS, RATE, SECONDS = 10_000, 200, 12
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 2000}]}).encode()


async def decisions(admission: Admission, seed: int) -> list[float]:
    """Milliseconds from a request's bytes to the engine chosen; open loop, Poisson."""
    dice = random.Random(seed)
    times: list[float] = []

    async def one(index: int) -> None:
        began = time.perf_counter()
        identity = identify({"x-agentserving-program-id": f"live-{index}"}, BODY)
        admitted = await admission.admit(identity, "default", len(BODY) // 4)
        times.append(1000 * (time.perf_counter() - began))
        if not admitted.ticket:
            raise RuntimeError("the control plane did not answer in time")
        admission.ended(admitted.call_id, types_pb2.OUTCOME_CANCELLED, never_started=True)

    began, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while due < SECONDS:
            due += dice.expovariate(RATE)
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            group.create_task(one(dice.randrange(PROGRAMS)))
    return sorted(times)


async def main(address: str, seed: int) -> None:
    """Quantiles, milliseconds, and how many there were."""
    admission = Admission(LeaderChannel(address))
    admission.start()
    while len(admission.engines) < 2:
        await asyncio.sleep(0.05)
    times = await decisions(admission, seed)
    await admission.close()
    at = {f"p{q}": times[int(q / 100 * (len(times) - 1))] for q in (50, 95, 99)}
    print(json.dumps({**at, "calls": len(times)}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
