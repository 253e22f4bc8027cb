"""The gRPC server of the endpoint picker: external processing, and health checks by the endpoint picker protocol."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

import grpc
import structlog
from agentserving.transport.connection import Tls
from agentserving.transport.server_tls import server_credentials
from agentserving_process.addresses import split_address
from agentserving_process.listening import listen
from agentserving_process.malformed import refuse, tolerant
from agentserving_process.options import option
from agentserving_process.supervision import CannotStartError
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from agentserving_gateway.exchange_log.verdict import Exchange
from agentserving_gateway.ext_proc import envoy_ext_proc_pb2 as pb
from agentserving_gateway.ext_proc.conversation import Conversation, Gateways
from agentserving_gateway.ext_proc.self_signed import self_signed
from agentserving_gateway.picker import Picker

log = structlog.get_logger()

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_HEALTH = "grpc.health.v1.Health"
LIVENESS, READINESS = "liveness", "readiness"
# Gateways that buffer send a whole body in one message.
_ENVELOPE_BYTES = 1 << 20


class Encryption(Enum):
    """Of the streams from gateways."""

    SELF_SIGNED = "self-signed"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtProcOptions:
    """Endpoint picker for other gateways (Gateway API Inference Extension)"""

    ext_proc_listen: str = option("", "address of the endpoint picker, host:port or [IPv6]:port; none: not served")
    ext_proc_tls: Encryption = option(
        Encryption.SELF_SIGNED, "what gateways get without --ext-proc-cert: a self-signed certificate, or no TLS"
    )
    ext_proc_cert: str = option("", "PEM file of its certificate, for gateways that verify it")
    ext_proc_key: str = option("", "PEM file of the certificate's private key")
    ext_proc_max_body_bytes: int = option(64 << 20, "largest request body that is read to find the program", least=1)

    def __post_init__(self) -> None:
        if self.ext_proc_listen:
            split_address(self.ext_proc_listen)
        if bool(self.ext_proc_cert) != bool(self.ext_proc_key):
            raise ValueError("--ext-proc-cert and --ext-proc-key: give both or neither")

    def credentials(self, now: datetime.datetime) -> grpc.ServerCredentials | None:
        """None without TLS. CannotStartError when a file cannot be read."""
        if self.ext_proc_cert:
            try:
                return server_credentials(Tls.of("", self.ext_proc_cert, self.ext_proc_key), log)
            except OSError as error:
                raise CannotStartError(str(error)) from None
        if self.ext_proc_tls is Encryption.NONE:
            return None
        return grpc.ssl_server_credentials([self_signed(now)])


class _Stream:
    """Implements conversation.Stream."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, pb.ProcessingResponse]) -> None:
        self._context = context

    async def read(self) -> pb.ProcessingRequest | None:
        message = await self._context.read()
        if not isinstance(message, bytes):
            return None
        try:
            return pb.ProcessingRequest.FromString(message)
        except DecodeError:
            # Whoever reaches the port could fill the log.
            await refuse(self._context)
            raise

    async def write(self, response: pb.ProcessingResponse) -> None:
        await self._context.write(response)


class ExtProc:
    """The service. `ready`: calls have somewhere to go."""

    def __init__(
        self, picker: Picker, *, ended: Callable[[Exchange], None], ready: Callable[[], bool], max_body_bytes: int
    ) -> None:
        self._picker, self._ended, self._is_ready, self._max_body = picker, ended, ready, max_body_bytes
        self._gateways = Gateways()
        # Streams that end from then on may be ended by this server: their calls go on.
        self.leaving = False
        # Where it listens, once it does.
        self.port = 0
        self.server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_body_bytes + _ENVELOPE_BYTES),
                ("grpc.max_send_message_length", max_body_bytes + _ENVELOPE_BYTES),
            ]
        )
        process: grpc.RpcMethodHandler[bytes, pb.ProcessingResponse] = grpc.stream_stream_rpc_method_handler(
            self.process,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        # Computed when asked; without Watch, which clients replace by Check.
        check = grpc.unary_unary_rpc_method_handler(
            self.check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),
                grpc.method_handlers_generic_handler(_HEALTH, {"Check": tolerant(check)}),
            )
        )

    @property
    def ready(self) -> bool:
        """Whether gateways should send requests."""
        return not self.leaving and self._is_ready()

    async def process(self, _: object, context: grpc.aio.ServicerContext[bytes, pb.ProcessingResponse]) -> None:
        """One stream. An error of ours ends it with a status other than OK: the pool's failure mode decides."""
        talk = Conversation(
            _Stream(context), context.peer(), picker=self._picker, gateways=self._gateways,
            ended=self._ended, max_body_bytes=self._max_body,
        )  # fmt: skip
        try:
            await talk.run()
        except asyncio.CancelledError:
            if not self.leaving:
                talk.left()
            raise
        except grpc.aio.AbortError:
            talk.left()
            raise
        except Exception:
            log.exception("a request failed in the endpoint picker")
            raise
        talk.left()

    async def check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        """The health of one of the protocol's services."""
        if request.service not in ("", LIVENESS, READINESS, SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        serves = request.service == LIVENESS or self.ready
        status = health_pb2.HealthCheckResponse.SERVING if serves else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    async def drain(self, limit_s: float) -> None:
        """Sends gateways elsewhere; returns when no stream is open, after `limit_s` at the latest."""
        self.leaving = True
        await self.server.stop(limit_s)


@asynccontextmanager
async def served(service: ExtProc, options: ExtProcOptions) -> AsyncIterator[None]:
    """Serves while the block runs. CannotStartError."""
    now = datetime.datetime.now(datetime.UTC)
    service.port = listen(service.server, options.ext_proc_listen, options.credentials(now))
    await service.server.start()
    log.info("endpoint picker serves", port=service.port)
    try:
        yield
    finally:
        service.leaving = True
        with contextlib.suppress(asyncio.CancelledError):
            await service.server.stop(0.5)
