"""``python -m benchmarks.transport SEED``: round trip of a message on a grpc.aio stream whose server answers at once.

The floor below every decision on this machine: two processes exchange the messages of an admission at the rate of
`decisions`, and the server does nothing but answer. Prints JSON, milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from agentserving.v1 import call_service_pb2 as pb
from agentserving.v1 import call_service_pb2_grpc

from benchmarks import open_loop
from benchmarks.decisions import RATE, SECONDS


class Echo(call_service_pb2_grpc.CallServiceServicer):
    """Answers every admission with the same response."""

    async def Admissions(self, requests: AsyncIterator[pb.AdmissionsRequest], context: Any) -> AsyncIterator[Any]:
        response = pb.AdmitCallResponse(
            call_id="live-1234.1.5", attempt=1, program_id="live-1234", engine_id="engine-0",
            engine_address="127.0.0.1:50000", ticket="t" * 200, epoch=1,
        )  # fmt: skip
        async for request in requests:
            yield pb.AdmissionsResponse(stream_id=request.stream_id, admitted=response)


async def serve() -> None:
    """Serves until it is killed, after printing its port."""
    server = grpc.aio.server()
    call_service_pb2_grpc.add_CallServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def drive(address: str, seed: int) -> list[float]:
    """Seconds from when each message was due until its answer arrived."""
    due_of: dict[int, float] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        stream = call_service_pb2_grpc.CallServiceStub(channel).Admissions()
        # One write at a time: grpc.aio allows no more on a stream.
        writing = asyncio.Lock()

        async def read() -> list[float]:
            return [time.perf_counter() - due_of.pop(response.stream_id) async for response in stream]

        async def send(number: int, due: float) -> None:
            due_of[number] = due
            admit = pb.AdmitCallRequest(program_id=f"live-{number}", implicit=True, prompt_tokens=500)
            async with writing:
                await stream.write(pb.AdmissionsRequest(stream_id=number, admit=admit))

        reading = asyncio.create_task(read())
        await open_loop.run(seed, RATE, SECONDS, send)
        await stream.done_writing()
        return await reading


async def main(seed: int) -> None:
    """Starts the server in a process of its own and prints quantiles."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.transport", stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        times = await drive(f"127.0.0.1:{int(await server.stdout.readline())}", seed)
    finally:
        server.terminate()
        await server.wait()
    print(json.dumps(open_loop.quantiles_ms(times)))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])) if len(sys.argv) > 1 else serve())
