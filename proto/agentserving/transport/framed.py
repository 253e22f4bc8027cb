"""Where a control plane serves framed streams, found over gRPC (stream_service.proto)."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from agentserving.transport.connection import MAX_RESPONSE_BYTES, Metadata, Pem
from agentserving.transport.leader import is_address
from agentserving.v1 import stream_service_pb2, stream_service_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class FramedEndpoint:
    """`pem` None = in the clear; `server_name` is the name in the certificate."""

    address: str
    pem: Pem | None = None
    server_name: str = ""
    max_response_bytes: int = MAX_RESPONSE_BYTES


async def framed_address(channel: grpc.aio.Channel, metadata: Metadata, timeout_s: float) -> str:
    """host:port of the framed streams of a control plane that leads; empty when it serves gRPC only. grpc.RpcError."""
    stub = stream_service_pb2_grpc.StreamServiceStub(channel)
    try:
        response = await stub.GetStreams(stream_service_pb2.GetStreamsRequest(), metadata=metadata, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            # An older one.
            return ""
        raise
    # None: an undecodable response.
    return response.address if response is not None and is_address(response.address) else ""
