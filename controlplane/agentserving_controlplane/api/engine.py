"""EngineService: carries the messages of a sidecar's stream to its EngineSession and back."""

from __future__ import annotations

from typing import Any

import grpc
from agentserving.v1 import engine_service_pb2 as pb
from agentserving.v1 import engine_service_pb2_grpc as rpc

from agentserving_controlplane.api import engine_conversion as conversion
from agentserving_controlplane.api.authentication import current_caller, peer_host
from agentserving_controlplane.api.servicing import end_with
from agentserving_controlplane.api.streams import Outlet, until_first_end
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engine_sessions import EngineSession
from agentserving_controlplane.engines.directives import together
from agentserving_controlplane.engines.identity import EngineIdentity
from agentserving_controlplane.errors import ConflictError, ReplacedError

# Messages taken at a time from what waits for an engine.
MAX_TOGETHER = 1000


class EngineServicer(rpc.EngineServiceServicer):
    """See engine_service.proto."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def Attach(self, requests: Any, context: Any) -> None:
        """Four tasks that end together: whichever fails, the stream ends and the sidecar attaches again."""
        session, outlet = self._plane.new_session(self._identity(context)), Outlet(context)
        try:
            await self._converse(context, outlet, session)
        except Exception as error:
            await outlet.close()
            await end_with(context, error)
        await outlet.close()

    def _identity(self, context: Any) -> EngineIdentity | None:
        caller = current_caller()
        if caller is None:
            return None
        hosts = self._plane.access.engine_hosts
        return EngineIdentity(engine_id=caller.name, peer_host=peer_host(context), hosts=hosts)

    async def _converse(self, context: Any, outlet: Outlet, session: EngineSession) -> None:
        try:
            await until_first_end(
                reader=_read(context, session),
                writer=self._write(outlet, session),
                acknowledger=session.acknowledge_reports(),
                replacement=_until_ended(session),
            )
        finally:
            session.detach()

    async def _write(self, outlet: Outlet, session: EngineSession) -> None:
        while True:
            queue = session.link.outgoing
            waiting = [await queue.get()]
            while not queue.empty() and len(waiting) < MAX_TOGETHER:
                waiting.append(queue.get_nowait())
            for message in together(waiting):
                await outlet.write(conversion.to_engine(message, self._plane.epoch))


async def _read(context: Any, session: EngineSession) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await _take(message, session)


async def _take(message: pb.AttachRequest, session: EngineSession) -> None:
    match message.WhichOneof("message"):
        case "hello":
            await session.hello(conversion.engine_hello(message.hello))
        case "report" if session.engine is not None:
            await session.report(conversion.engine_report(message.report, session.engine.engine_id))
        case "policy_ack":
            session.acknowledge_policy(message.policy_ack.version, message.policy_ack.error)
        case "report":
            raise ConflictError("HELLO_FIRST", "the first message must be hello")


async def _until_ended(session: EngineSession) -> None:
    await session.link.ended.wait()
    raise ReplacedError("STREAM_ENDED", session.link.reason, retry_after_s=1.0)
