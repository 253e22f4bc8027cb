"""EngineService: one stream per sidecar. Reports are acknowledged once the commit that holds them has landed."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import structlog
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc

from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.engines import Engine
from agentserving_controlplane.store import FencedError

log = structlog.get_logger()

REPORT_INTERVAL_US = 1_000_000


class EngineServicer(rpc.EngineServiceServicer):
    """A newer stream of the same engine replaces the older one."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def Attach(self, requests: Any, context: Any) -> None:
        """See the proto."""
        outgoing: asyncio.Queue[pb.AttachResponse] = asyncio.Queue()
        acks: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._write(context, outgoing)), asyncio.create_task(self._ack(acks, outgoing))]
        engine: Engine | None = None
        push = outgoing.put_nowait
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                kind = message.WhichOneof("message")
                if kind == "hello":
                    engine = self._welcome(message.hello, push)
                elif engine is None:
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "hello must come first")
                elif kind == "report":
                    number = self._plane.report(engine, message.report)
                    if message.report.seq:
                        acks.put_nowait((number, message.report.seq))
                elif kind == "policy_ack":
                    self._policy_ack(engine, message.policy_ack)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if engine is not None and self._plane.links.get(engine.engine_id) is push:
                del self._plane.links[engine.engine_id]
                engine.attached = False
                log.warning("engine detached", engine=engine.engine_id)
                self._plane.engines_changed()

    def _welcome(self, hello: pb.EngineHello, push: Any) -> Engine:
        plane = self._plane
        engine = plane.engines.ensure(hello.engine_id)
        if engine.boot_id and engine.boot_id != hello.boot_id:
            lost = plane.table.engine_lost(engine.engine_id, engine.boot_id, now_us())
            engine.in_flight = max(0, engine.in_flight - len(lost))
            plane.settle(force=True)
        engine.boot_id, engine.address = hello.boot_id, hello.address
        engine.sidecar_address = hello.sidecar_address
        engine.capabilities.CopyFrom(hello.capabilities)
        engine.draining = engine.draining or hello.draining
        engine.attached, engine.heard_us = True, now_us()
        plane.links[engine.engine_id] = push
        push(
            pb.AttachResponse(
                welcome=pb.Welcome(epoch=plane.epoch, policy=plane.policy, report_interval_us=REPORT_INTERVAL_US)
            )
        )
        for root in plane.paused_roots():
            plane.direct(engine.engine_id, pause=pb.PauseCalls(program_id=root, paused=True))
        log.info("engine attached", engine=engine.engine_id, boot=engine.boot_id, address=engine.address)
        plane.engines_changed()
        return engine

    def _policy_ack(self, engine: Engine, ack: pb.PolicyAck) -> None:
        if ack.error:
            engine.policy_error = ack.error
            log.error("engine refused the policy", engine=engine.engine_id, version=ack.version, error=ack.error)
        else:
            engine.policy_version, engine.policy_error = ack.version, ""

    async def _write(self, context: Any, outgoing: asyncio.Queue[pb.AttachResponse]) -> None:
        while True:
            await context.write(await outgoing.get())

    async def _ack(self, acks: asyncio.Queue[tuple[int, int]], outgoing: asyncio.Queue[pb.AttachResponse]) -> None:
        while True:
            number, seq = await acks.get()
            try:
                await self._plane.commits.durable(number)
            except FencedError:
                return
            while not acks.empty() and acks._queue[0][0] <= number:  # type: ignore[attr-defined]
                seq = max(seq, acks.get_nowait()[1])
            outgoing.put_nowait(pb.AttachResponse(ack=pb.Ack(seq=seq)))
