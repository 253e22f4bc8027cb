"""``python -m benchmarks.transport SEED``: what a message and its answer take on a grpc.aio stream with nothing behind.

The floor under every decision on this machine: two processes, the messages of an admission at the rate of `decisions`,
answered at once with what a control plane would say. Prints JSON, milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc

from benchmarks.decisions import RATE, SECONDS


class Echo(call_service_pb2_grpc.CallServiceServicer):
    """Answers every admission with the same."""

    async def Admissions(self, requests: AsyncIterator[pb.AdmissionsRequest], context: Any) -> AsyncIterator[Any]:
        answer = pb.AdmitCallResponse(
            call_id="live-1234.1.5", attempt=1, program_id="live-1234", engine_id="engine-0",
            engine_address="127.0.0.1:50000", ticket="t" * 200, epoch=1,
        )  # fmt: skip
        async for request in requests:
            yield pb.AdmissionsResponse(stream_id=request.stream_id, admitted=answer)


async def serve() -> None:
    """Until killed; the first line tells the port."""
    server = grpc.aio.server()
    call_service_pb2_grpc.add_CallServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def drive(address: str, seed: int) -> list[float]:
    """Milliseconds from a message to its answer, sorted."""
    dice, waiting = random.Random(seed), dict[int, float]()
    async with grpc.aio.insecure_channel(address) as channel:
        stream = call_service_pb2_grpc.CallServiceStub(channel).Admissions()

        async def read() -> list[float]:
            return [1000 * (time.perf_counter() - waiting.pop(answer.stream_id)) async for answer in stream]

        reading = asyncio.create_task(read())
        began, due, number = time.perf_counter(), 0.0, 0
        while due < SECONDS:
            due += dice.expovariate(RATE)
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            number += 1
            waiting[number] = time.perf_counter()
            admit = pb.AdmitCallRequest(program_id=f"live-{number}", implicit=True, prompt_tokens=500)
            await stream.write(pb.AdmissionsRequest(stream_id=number, admit=admit))
        await stream.done_writing()
        return sorted(await reading)


async def main(seed: int) -> None:
    """Starts the other side, and prints quantiles."""
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.transport", stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    try:
        times = await drive(f"127.0.0.1:{int(await other.stdout.readline())}", seed)
    finally:
        other.terminate()
        await other.wait()
    print(json.dumps({f"p{q}": times[int(q / 100 * (len(times) - 1))] for q in (50, 95, 99)}))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])) if len(sys.argv) > 1 else serve())
