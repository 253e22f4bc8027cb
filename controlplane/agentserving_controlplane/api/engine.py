"""EngineService: one stream per sidecar. Reports are acknowledged once the commit that holds them has landed."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any

import grpc
import structlog
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc
from google.protobuf.message import DecodeError

from agentserving_controlplane.api.common import Outlet
from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.control_plane import ControlPlane, now_us
from agentserving_controlplane.engines.links import Link
from agentserving_controlplane.engines.registry import Engine
from agentserving_controlplane.errors import ConflictError, DomainError, InvalidError, NotLeaderError, ReplacedError
from agentserving_controlplane.store.port import FencedError, StoreError

log = structlog.get_logger()

REPORT_INTERVAL_US = 1_000_000
# Acknowledgements that wait for the store, each for itself; more are merged into the last one.
MAX_WAITING_ACKS = 1000
ENGINE_ID = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")


class EngineServicer(rpc.EngineServiceServicer):
    """A newer stream of the same engine replaces the older one."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def Attach(self, requests: Any, context: Any) -> None:
        """See the proto."""
        stream = _Stream(self._plane, context)
        tasks = [asyncio.create_task(work()) for work in (stream.read, stream.write, stream.acknowledge)]
        ended = asyncio.create_task(stream.link.ended.wait())
        error: BaseException | None = None
        try:
            await asyncio.wait({tasks[0], ended}, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done() and not tasks[0].cancelled():
                error = tasks[0].exception()
            elif stream.link.ended.is_set():
                error = ReplacedError("STREAM_ENDED", stream.link.reason, retry_after_s=1.0)
            await stream.outlet.close()
        finally:
            for task in (*tasks, ended):
                task.cancel()
            await asyncio.gather(*tasks, ended, return_exceptions=True)
            stream.detach()
        if isinstance(error, DomainError | StoreError | DecodeError):
            await abort(context, error)
        elif isinstance(error, Exception) and not isinstance(error, grpc.RpcError):
            log.error("stream of an engine failed", exc_info=error)
            await abort(context, error)


class _Stream:
    """One sidecar's stream: three tasks that end together."""

    def __init__(self, plane: ControlPlane, context: Any) -> None:
        self._plane, self._context, self.outlet = plane, context, Outlet(context)
        self.link = Link()
        self.engine: Engine | None = None
        self._acks: deque[tuple[int, int]] = deque()
        self._acks_there = asyncio.Event()
        self._seen_seq = 0
        # Calls of earlier boots are given up once the reports up to here have come.
        self._give_up_at: int | None = None

    async def read(self) -> None:
        """What the sidecar says, until it hangs up."""
        while (message := await self._context.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            if kind == "hello":
                await self._welcome(message.hello)
            elif self.engine is None:
                raise ConflictError("HELLO_FIRST", "the first message must be hello")
            elif kind == "report":
                await self._report(self.engine, message.report)
            elif kind == "policy_ack":
                self._policy_ack(self.engine, message.policy_ack)

    async def _welcome(self, hello: pb.EngineHello) -> None:
        plane = self._plane
        if ENGINE_ID.fullmatch(hello.engine_id) is None or not hello.boot_id or len(hello.boot_id) > 128:
            raise InvalidError(
                "BAD_ENGINE_ID", "engine_id: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, with a boot_id", field="engine_id"
            )
        if self.engine is not None and self.engine.engine_id != hello.engine_id:
            raise InvalidError("ENGINE_CHANGED", "engine_id: one stream, one engine", field="engine_id")
        if hello.epoch > plane.epoch:
            raise NotLeaderError(f"epoch {hello.epoch} has been seen, this is {plane.epoch}")
        engine = self.engine = plane.engines.ensure(hello.engine_id)
        engine.boot_id, engine.address = hello.boot_id, hello.address
        engine.sidecar_address = hello.sidecar_address
        engine.capabilities.CopyFrom(hello.capabilities)
        engine.leaving = hello.draining
        engine.attached, engine.heard_us = True, now_us()
        plane.links.attach(engine.engine_id, self.link)
        welcome = plane.greet(engine)
        welcome.report_interval_us = REPORT_INTERVAL_US
        self.link.push(pb.AttachResponse(welcome=welcome))
        log.info("engine attached", engine=engine.engine_id, boot=engine.boot_id, address=engine.address)
        plane.engines_changed()
        await plane.brief(engine)
        self._give_up_at = hello.unacked_seq
        await self._give_up(engine)

    async def _give_up(self, engine: Engine) -> None:
        if self._give_up_at is not None and self._seen_seq >= self._give_up_at:
            self._give_up_at = None
            await self._plane.boot_lost(engine, engine.boot_id)

    async def _report(self, engine: Engine, report: pb.Report) -> None:
        number = self._plane.report(engine, report)
        if report.engine_down:
            await self._plane.boot_lost(engine, engine.boot_id if engine.boot_id != report.boot_id else "")
        if not report.seq:
            return
        self._seen_seq = max(self._seen_seq, report.seq)
        if len(self._acks) >= MAX_WAITING_ACKS:
            self._acks.pop()
        self._acks.append((number, report.seq))
        self._acks_there.set()
        await self._give_up(engine)

    def _policy_ack(self, engine: Engine, ack: pb.PolicyAck) -> None:
        if ack.error:
            engine.policy_error = ack.error[:1000]
            log.error("engine refused the policy", engine=engine.engine_id, version=ack.version, error=ack.error[:1000])
        else:
            engine.policy_version, engine.policy_error = ack.version, ""

    async def write(self) -> None:
        """What there is to tell, in order."""
        while True:
            await self.outlet.write(await self.link.outgoing.get())

    async def acknowledge(self) -> None:
        """Acknowledges what has landed; one message for all that landed together."""
        commits = self._plane.commits
        while True:
            await self._acks_there.wait()
            number, seq = self._acks.popleft()
            try:
                await commits.durable(number)
            except FencedError:
                return
            while self._acks and commits.has_landed(self._acks[0][0]):
                seq = max(seq, self._acks.popleft()[1])
            if not self._acks:
                self._acks_there.clear()
            self.link.push(pb.AttachResponse(ack=pb.Ack(seq=seq)))

    def detach(self) -> None:
        """The stream is over."""
        engine = self.engine
        if engine is not None and self._plane.links.detach(engine.engine_id, self.link):
            engine.attached = False
            log.warning("engine detached", engine=engine.engine_id)
            self._plane.engines_changed()
