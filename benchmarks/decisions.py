"""``python -m benchmarks.decisions ADDRESS SEED``: how long a gateway waits for an engine to be chosen; prints JSON.

Runs the gateway's own admission code on its own event loop against a running control plane, in an open loop.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from agentserving.contract.ids import Tenant
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_gateway.admission import Admission
from agentserving_gateway.body import read_body
from agentserving_gateway.calls import CallRequest, Ending, EndOfCall
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.identity import from_body, from_head

from benchmarks import open_loop

PROGRAMS, RATE, SECONDS = 10_000, 200, 12
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 2000}]}).encode()


async def decisions(admission: Admission, seed: int) -> list[float]:
    """Seconds from when each request was due until its engine was chosen."""
    rng = random.Random(seed)
    times: list[float] = []

    async def admit(_: int, due: float) -> None:
        headers = {"x-agentserving-program-id": f"live-{rng.randrange(PROGRAMS)}"}
        identity = from_head(headers) or from_body(read_body(BODY))
        request = CallRequest(
            tenant=Tenant("default"), program_id=identity.program_id, prompt_tokens=len(BODY) // 4, model="tiny"
        )
        admitted = await admission.admit(request)
        times.append(time.perf_counter() - due)
        if not admitted.ticket:
            raise RuntimeError("the control plane did not answer in time")
        admission.end(
            EndOfCall(call_id=admitted.call_id, tenant=request.tenant, ending=Ending.CANCELLED, never_started=True)
        )

    await open_loop.run(seed, RATE, SECONDS, admit)
    return times


async def main(address: str, seed: int) -> None:
    """Prints quantiles in milliseconds and the number of calls."""
    with tempfile.TemporaryDirectory() as directory:
        # There is no Envoy: what is written for it is in force at once.
        admission = Admission(LeaderChannel(address), EnginesFile(Path(directory) / "engines.json"), _at_once)
        times = await _measured(admission, seed)
    print(json.dumps({**open_loop.quantiles_ms(times), "calls": len(times)}))


async def _at_once(address: str) -> bool:
    return True


async def _measured(admission: Admission, seed: int) -> list[float]:
    running = asyncio.create_task(admission.run())
    async with asyncio.timeout(30):
        while len(admission.ready_engines()) < 2:
            await asyncio.sleep(0.05)
    times = await decisions(admission, seed)
    await admission.flush()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return times


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
