"""Envoy's access log service over gRPC: Envoy opens one stream and sends entries in batches.

Nothing waits for it: the log is off the way of the calls. The only module of the gateway that reads Envoy's messages.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import grpc
import structlog
from agentserving.contract.ids import CallId, Tenant

from agentserving_gateway.envoy import names
from agentserving_gateway.envoy.access_log import PASSED_ON
from agentserving_gateway.exchange_log import envoy_access_log_pb2 as pb
from agentserving_gateway.exchange_log.verdict import Exchange

log = structlog.get_logger()

_METHOD = "StreamAccessLogs"
_SERVICE = "envoy.service.accesslog.v3.AccessLogService"
_ENGINE_FLAGS = (
    "no_healthy_upstream", "upstream_request_timeout", "local_reset", "upstream_remote_reset",
    "upstream_connection_failure", "upstream_connection_termination", "upstream_overflow",
    "upstream_retry_limit_exceeded", "upstream_protocol_error",
)  # fmt: skip
_CLIENT_FLAGS = ("downstream_connection_termination", "downstream_protocol_error", "downstream_remote_reset")


def exchange_of(entry: pb.Entry) -> Exchange:
    common, headers = entry.common_properties, entry.request.request_headers
    flags, address = common.response_flags, common.upstream_remote_address.socket_address
    return Exchange(
        call_id=headers.get(names.CALL_ID, ""),
        tenant=headers.get(names.TENANT, ""),
        status=entry.response.response_code.value,
        engine_failed=any(getattr(flags, name) for name in _ENGINE_FLAGS),
        client_left=any(getattr(flags, name) for name in _CLIENT_FLAGS),
        was_sent=common.HasField("time_to_first_upstream_tx_byte"),
        addresses=tuple(each for each in headers.get(names.ENDPOINTS, "").split(",") if each),
        last=_joined(address.address, address.port_value),
        attempts=common.upstream_request_attempt_count,
    )


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else ""


def _by_tenant(entries: Iterable[pb.Entry]) -> dict[Tenant, list[CallId]]:
    calls: dict[Tenant, list[CallId]] = {}
    for entry in entries:
        headers = entry.request.request_headers
        calls.setdefault(Tenant(headers.get(names.TENANT, "")), []).append(CallId(headers[names.CALL_ID]))
    return calls


@asynccontextmanager
async def served(
    path: str, ended: Callable[[Exchange], None], passed_on: Callable[[Mapping[Tenant, Sequence[CallId]]], None]
) -> AsyncIterator[None]:
    """Receives on a Unix socket while the block runs. `passed_on`: calls whose exchanges went as planned."""

    async def receive(messages: AsyncIterator[pb.LogMessage], context: object) -> pb.LogResponse:
        planned = False
        async for message in messages:
            if message.HasField("identifier"):
                planned = message.identifier.log_name == PASSED_ON
            if planned:
                passed_on(_by_tenant(message.http_logs.log_entry))
                continue
            for entry in message.http_logs.log_entry:
                ended(exchange_of(entry))
        return pb.LogResponse()

    handler = grpc.stream_unary_rpc_method_handler(
        receive,
        request_deserializer=pb.LogMessage.FromString,
        response_serializer=pb.LogResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
    if os.path.exists(path):
        os.unlink(path)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0.5)
