"""What the guard of an RPC (authentication, authorization, audit) costs. Run: python -m benchmarks.authentication

One process, one store in memory, one channel to a server without and one to a server with the guard; both get the same
metadata. Batches alternate between the two, and the figure is the median of the paired differences of the process's CPU
time, with a 95 % bootstrap interval. CPU time: the machine's other load does not count.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import uvloop
from agentserving.contract.identity import Role
from agentserving.contract.keys import NewKey, new_key
from agentserving.contract.signatures import signing_key
from agentserving.v1 import program_service_pb2, program_service_pb2_grpc
from agentserving_controlplane.__main__ import register
from agentserving_controlplane.api.audit import Audit
from agentserving_controlplane.api.authentication import Authenticator
from agentserving_controlplane.api.authorization import Port
from agentserving_controlplane.api.gate import Gate, Services
from agentserving_controlplane.api.guard import Guard, OpenStreams
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.memory import MemoryStore

BATCH, PAIRS, RESAMPLES = 50, 200, 2000
KEYS = 10_000
Send = Callable[[], Awaitable[Any]]


async def main() -> None:
    """Prints the figures in microseconds a call."""
    store = MemoryStore()
    settings = PlaneSettings(ticket_keys=lambda: (signing_key(b"0123456789abcdef"),))
    plane = ControlPlane(settings, store, await store.acquire("t"), lambda error: None)
    await plane.recover(store)
    key = _client()
    for row in (*(_client().row for _ in range(KEYS)), key.row):
        plane.api_keys.keys.put(row)
    authenticator = Authenticator(plane.api_keys.keys, has_certificates=False)
    guard = Guard(authenticator, Port.CLIENTS, Audit(), OpenStreams())
    metadata = (("authorization", f"Bearer {key.text}"),)
    async with _served(plane, None) as open_channel, _served(plane, guard) as guarded_channel:
        sends = [_sender(channel, metadata) for channel in (open_channel, guarded_channel)]
        for send in sends:
            await _batch(send)
        pairs = []
        for _ in range(PAIRS):
            order = random.sample((0, 1), 2)
            spent = {which: await _batch(sends[which]) for which in order}
            pairs.append(spent[1] - spent[0])
        low, high = _interval(pairs)
        print(f"guard of a unary RPC: {statistics.median(pairs):.1f} us [{low:.1f}, {high:.1f}], {PAIRS} pairs")
    await plane.commits.close(1)


def _client() -> NewKey:
    return new_key(Role.CLIENT, "default", now_unix_s=time.time(), lifetime_s=3600)


class _served:
    """A server with a gate, and a channel to it."""

    def __init__(self, plane: ControlPlane, guard: Guard | None) -> None:
        self._services, self._gate = Services(), Gate()
        register(self._services, plane)
        self._gate.open(self._services, guard)

    async def __aenter__(self) -> grpc.aio.Channel:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self._gate,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        await self._server.stop(0)


def _sender(channel: grpc.aio.Channel, metadata: Any) -> Send:
    programs, request = program_service_pb2_grpc.ProgramServiceStub(channel), program_service_pb2.ListProgramsRequest()
    return lambda: programs.ListPrograms(request, metadata=metadata)


async def _batch(send: Send) -> float:
    """CPU time of this process for one call, microseconds."""
    began = time.process_time()
    for _ in range(BATCH):
        await send()
    return (time.process_time() - began) / BATCH * 1e6


def _interval(differences: list[float]) -> tuple[float, float]:
    drawn = random.Random(1)
    medians = sorted(statistics.median(drawn.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975)]


if __name__ == "__main__":
    uvloop.run(main())
