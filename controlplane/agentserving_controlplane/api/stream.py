"""StreamService: where gateways and sidecars find their streams as frames (agentserving_process.frames)."""

from __future__ import annotations

from typing import Any

from agentserving.v1 import stream_service_pb2 as pb
from agentserving.v1 import stream_service_pb2_grpc as rpc

# What is served there; everything else is gRPC's.
FRAMED = frozenset({"/agentserving.v1.CallService/Admissions", "/agentserving.v1.EngineService/Attach"})


class StreamServicer(rpc.StreamServiceServicer):
    """Announces the address of framed streams, or none where they are not served."""

    def __init__(self, address: str) -> None:
        """`address`: host:port; empty = gRPC only."""
        self._response = pb.GetStreamsResponse(address=address)

    async def GetStreams(self, request: pb.GetStreamsRequest, context: Any) -> pb.GetStreamsResponse:
        return self._response
