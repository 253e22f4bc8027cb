"""A control plane with keys, over gRPC, as a state machine drives it: one step at a time, with failovers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
from agentserving.contract.identity import Role
from agentserving.v1 import call_service_pb2_grpc, key_service_pb2_grpc, program_service_pb2_grpc
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.store.port import FencedError, StoreUnavailableError, Write
from agentserving_controlplane.table.reports import CallReport
from agentserving_process.supervision import CannotStartError
from controlplane.guarded_plane import a_key, bearer, guarded
from controlplane.leader_builders import attach
from controlplane.table_builders import check_invariants
from support.served_plane import Refusal

ADMIN = a_key(role=Role.ADMIN)


class InterruptedStore(MemoryStore):
    """Takes no writes while it is `away`."""

    away = False

    async def commit(self, epoch: int, writes: Sequence[Write]) -> int:
        if self.away:
            raise StoreUnavailableError("away")
        return await super().commit(epoch, writes)


class Api:
    """The stubs of one cluster whose leaders come and go. `run` runs a coroutine on its loop."""

    def __init__(self) -> None:
        self._runner, self._stack = asyncio.Runner(), AsyncExitStack()
        self.store = InterruptedStore()
        self.plane: ControlPlane
        self.run(self._lead())

    def run(self, coroutine: Any) -> Any:
        """The coroutine's result."""
        return self._runner.run(coroutine)

    async def _lead(self) -> None:
        for left in reversed(range(5)):
            # Another process may take a free port before the server does.
            with contextlib.nullcontext() if not left else contextlib.suppress(CannotStartError):
                leading = guarded(None, self.store, two_ports=False, bootstrap_keys=(ADMIN.row,))
                served = await self._stack.enter_async_context(leading)
                break
        self.channel = channel = await served.parts()
        self.plane = served.plane
        # Commits are what takes time here.
        self.plane.commits._interval_s = 0.001
        self.programs: Any = program_service_pb2_grpc.ProgramServiceStub(channel)
        self.calls: Any = call_service_pb2_grpc.CallServiceStub(channel)
        self.keys: Any = key_service_pb2_grpc.KeyServiceStub(channel)
        self.engine = await attach(self.plane)

    def write_nothing_more(self) -> None:
        """What changes from here on is lost by the next failover."""
        self.run(self.plane.commits.flush())
        self.store.away = True

    def fail_over(self) -> None:
        """Another leader takes over: from a crashed one if that could write nothing more."""

        async def over() -> None:
            if self.store.away:
                await self.plane.commits.fence(FencedError("crash"))
            await self._stack.aclose()
            self.store.away = False
            await self._lead()

        self.run(over())

    def ask(self, rpc: Any, request: Any, key: str) -> Any:
        """The answer, or the Refusal."""

        async def asked() -> Any:
            call: Awaitable[Any] = rpc(request, metadata=bearer(key), timeout=30)
            try:
                return await call
            except grpc.aio.AioRpcError as error:
                return Refusal(error)

        return self.run(asked())

    def report(self, report: CallReport) -> None:
        """The engine reports."""

        async def reported() -> None:
            self.plane.table.report(report, self.plane.now())
            self.plane.settle()

        self.run(reported())

    def close(self) -> None:
        """Ends the cluster."""
        check_invariants(self.plane.table)
        self.run(self._stack.aclose())
        self._runner.close()
