"""``python -m benchmarks.scale_load ADDRESSES ENGINES``: simulated sidecars and gateways of one control plane.

Speaks the real contract: each engine has its Attach stream, says hello, beats every few seconds while it is idle, and
sends the final report of a call some milliseconds after its admission, several in one message when they are there
together. Reads commands as lines of JSON and answers each with one:

    {"do": "load", "rate": 200, "seconds": 10, "programs": 1000, "seed": 1}    rate 0: closed loop of CONCURRENCY
    {"do": "outage", "programs": 1000}    admits until it fails and works again; gives the seconds between
    {"do": "attached"}                    waits until every sidecar is attached
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import deque
from typing import Any

import grpc
import uvloop
from agentserving.transport.leader_channel import LeaderChannel
from agentserving.v1 import call_service_pb2 as calls
from agentserving.v1 import engine_service_pb2 as engines
from agentserving.v1 import types_pb2 as types
from agentserving.v1.call_service_pb2_grpc import CallServiceStub
from agentserving.v1.engine_service_pb2_grpc import EngineServiceStub

from benchmarks import open_loop

# Callers of a closed loop; streams of gateways.
CONCURRENCY, GATEWAYS = 64, 2
# As a picker: requests in one message, and engines that its ticket names besides the first.
MAX_TOGETHER, MAX_FALLBACKS = 32, 1
# An idle sidecar has nothing new to say, and says so this often.
BEAT_S, SERVICE_S, PROMPT_TOKENS = 4.0, 0.005, 500
# Between two attempts while there is no leader.
RETRY_S = 0.02
OUTAGE_BOUND_S = 120.0


class Sidecar:
    """One engine's stream, attached again whenever it breaks."""

    def __init__(self, number: int, channel: LeaderChannel) -> None:
        self.engine_id, self._channel = f"e{number}", channel
        self._ended: asyncio.Queue[engines.CallReport] = asyncio.Queue()
        self._seq = 0
        self._prompt_tokens = 0
        self.attached = asyncio.Event()

    def serve(self, admitted: calls.AdmitCallResponse) -> None:
        self._ended.put_nowait(
            engines.CallReport(
                call_id=admitted.call_id, attempt=admitted.attempt, program_id=admitted.program_id,
                root_program_id=admitted.program_id, tenant="default", boot_id="boot", service_us=1_000, wait_us=10,
                prompt_tokens=PROMPT_TOKENS, output_tokens=100, outcome=types.OUTCOME_COMPLETED,
                engine_ids=[self.engine_id, *(engine.engine_id for engine in admitted.fallbacks)],
            )
        )  # fmt: skip

    async def run(self) -> None:
        while True:
            channel = await self._channel.channel()
            try:
                await self._converse(EngineServiceStub(channel).Attach())
            except grpc.RpcError as error:
                self.attached.clear()
                await asyncio.sleep(await self._channel.failed(error))

    async def _converse(self, stream: Any) -> None:
        capabilities = types.EngineCapabilities(
            engine_kind="SIMULATOR", models=["tiny"], max_num_seqs=256, block_size=16, num_blocks=100_000
        )
        hello = engines.EngineHello(
            engine_id=self.engine_id, boot_id="boot", address="127.0.0.1:1", sidecar_address="127.0.0.1:2",
            capabilities=capabilities, health=types.ENGINE_HEALTH_SERVING,
        )  # fmt: skip
        await stream.write(engines.AttachRequest(hello=hello))
        reporter = asyncio.create_task(self._report(stream))
        try:
            async for message in stream:
                if message.HasField("welcome"):
                    self.attached.set()
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)

    async def _report(self, stream: Any) -> None:
        while True:
            ended: list[engines.CallReport] = []
            with contextlib.suppress(TimeoutError):
                ended.append(await asyncio.wait_for(self._ended.get(), BEAT_S))
                await asyncio.sleep(SERVICE_S)
            while not self._ended.empty():
                ended.append(self._ended.get_nowait())
            self._seq += len(ended)
            self._prompt_tokens += PROMPT_TOKENS * len(ended)
            load = types.EngineLoad(
                total_blocks=100_000, prompt_tokens=self._prompt_tokens, prefill_us_per_token=50 + self._seq % 3
            )
            report = engines.Report(seq=self._seq if ended else 0, load=load, calls=ended, boot_id="boot")
            await stream.write(engines.AttachRequest(report=report))


class Gateway:
    """One Admissions stream, as a picker has it: requests that wait travel together; answers are matched by number."""

    def __init__(self, stub: CallServiceStub, sidecars: dict[str, Sidecar]) -> None:
        self._stream: Any = stub.Admissions()
        self._sidecars = sidecars
        self._outgoing: deque[calls.AdmissionsRequest] = deque()
        self._wake = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._number = 0
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def _write(self) -> None:
        await self._stream.write(calls.AdmissionsRequest(hello=calls.GatewayHello(reads_more=True)))
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outgoing:
                count = min(len(self._outgoing), MAX_TOGETHER)
                requests = [self._outgoing.popleft() for _ in range(count)]
                await self._stream.write(requests[0] if count == 1 else calls.AdmissionsRequest(more=requests))

    async def _read(self) -> None:
        async for message in self._stream:
            self._take(message)
            for answer in message.more:
                self._take(answer)

    def _take(self, answer: calls.AdmissionsResponse) -> None:
        waiting = self._waiting.pop(answer.stream_id, None)
        if waiting is None:
            return
        is_admitted = answer.HasField("admitted")
        if is_admitted:
            self._sidecars[answer.admitted.engine_id].serve(answer.admitted)
        waiting.set_result(is_admitted)

    async def admit(self, program_id: str) -> bool:
        """Whether a call was admitted."""
        self._number += 1
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        admit = calls.AdmitCallRequest(
            program_id=program_id, implicit=True, prompt_tokens=PROMPT_TOKENS, max_fallbacks=MAX_FALLBACKS
        )
        self._outgoing.append(calls.AdmissionsRequest(stream_id=self._number, admit=admit))
        self._wake.set()
        return await answer

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._stream.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Load:
    """The commands, on the leader at the moment."""

    def __init__(self, addresses: str, count: int) -> None:
        self._channel = LeaderChannel(addresses)
        self._sidecars = {f"e{n}": Sidecar(n, LeaderChannel(addresses)) for n in range(count)}
        self._tasks = [asyncio.create_task(sidecar.run()) for sidecar in self._sidecars.values()]

    async def attached(self) -> None:
        """Returns when every sidecar is attached."""
        await asyncio.gather(*(sidecar.attached.wait() for sidecar in self._sidecars.values()))

    async def load(self, rate: float, seconds: float, programs: int, seed: int) -> dict[str, float]:
        """Admissions for programs drawn at random: calls, refusals, seconds, and quantiles of the time until admitted,
        in milliseconds from when a call was due."""
        stub, dice = CallServiceStub(await self._channel.channel()), random.Random(seed)
        gateways = [Gateway(stub, self._sidecars) for _ in range(GATEWAYS)]
        times: list[float] = []
        refused = 0

        async def call(number: int, due: float) -> None:
            nonlocal refused
            refused += not await gateways[number % GATEWAYS].admit(f"live-{dice.randrange(programs)}")
            times.append(time.perf_counter() - due)

        async def caller(number: int, ends: float) -> None:
            while time.perf_counter() < ends:
                await call(number, time.perf_counter())

        began = time.perf_counter()
        if rate:
            await open_loop.run(seed, rate, seconds, call)
        else:
            await asyncio.gather(*(caller(number, began + seconds) for number in range(CONCURRENCY)))
        took = time.perf_counter() - began
        await asyncio.gather(*(gateway.close() for gateway in gateways))
        return {"calls": len(times), "refused": refused, "seconds": took, **open_loop.quantiles_ms(times)}

    async def outage(self, programs: int) -> dict[str, float]:
        """Seconds between the last admission before an outage and the first one after it. TimeoutError."""
        last, failed, number = time.perf_counter(), False, 0
        ends = last + OUTAGE_BOUND_S
        while time.perf_counter() < ends:
            number += 1
            request = calls.AdmitCallRequest(program_id=f"live-{number % programs}", implicit=True)
            try:
                stub = CallServiceStub(await self._channel.channel())
                admitted = await stub.AdmitCall(request, timeout=1.0)
            except grpc.RpcError as error:
                failed = True
                await self._channel.failed(error)
            else:
                self._sidecars[admitted.engine_id].serve(admitted)
                if failed:
                    return {"seconds": time.perf_counter() - last}
                last = time.perf_counter()
            await asyncio.sleep(RETRY_S)
        raise TimeoutError(f"no outage, or one of more than {OUTAGE_BOUND_S:.0f} s")


async def main(addresses: str, count: int) -> None:
    """Answers commands until the input ends."""
    load = Load(addresses, count)
    await load.attached()
    print(json.dumps({"attached": count}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        match command["do"]:
            case "load":
                figures = await load.load(command["rate"], command["seconds"], command["programs"], command["seed"])
            case "outage":
                figures = await load.outage(command["programs"])
            case "attached":
                await load.attached()
                figures = {}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
