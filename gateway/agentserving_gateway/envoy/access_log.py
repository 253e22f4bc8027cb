"""What Envoy records of each request: one JSON line for people, and the ends of calls for the picker. Pure.

No line contains a prompt, an answer, a query or a credential.
"""

from __future__ import annotations

from agentserving_gateway.envoy import names
from agentserving_gateway.envoy.clusters import LOG
from agentserving_gateway.envoy.extensions import Json, extension, seconds

BATCH_S = 0.1
# Ends that an engine may not report, and engines that failed; the picker needs no other entry.
UNPLANNED = (
    f"'{names.ENDPOINTS}' in request.headers && "
    "(response.code >= 300 || response.flags != 0 || upstream.request_attempt_count > 1u)"
)

LINE: Json = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "method": "%REQ(:METHOD)%",
    "path": "%PATH(NQ)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "program": f"%REQ({names.PROGRAM_ID})%",
    "call": f"%REQ({names.CALL_ID})%",
    "request_id": f"%REQ({names.CLIENT_REQUEST_ID})%",
    "tenant": f"%REQ({names.TENANT})%",
    "key": f"%REQ({names.CREDENTIAL})%",
    "engine": "%UPSTREAM_METADATA(agentserving:engine)%",
    "upstream": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "first_byte_ms": "%RESPONSE_DURATION%",
    "protocol": "%PROTOCOL%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
}


def loggers() -> list[Json]:
    """For the connection manager."""
    return [
        extension(
            "access_loggers.stdout",
            "extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": LINE},
        ),
        {
            **extension(
                "access_loggers.http_grpc",
                "extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
                common_config={
                    "log_name": "calls",
                    "transport_api_version": "V3",
                    # An engine that has just failed must not be named again: no waiting for more entries.
                    "buffer_size_bytes": 0,
                    "buffer_flush_interval": seconds(BATCH_S),
                    "grpc_service": {"envoy_grpc": {"cluster_name": LOG}},
                },
                additional_request_headers_to_log=[names.CALL_ID, names.ENDPOINTS, names.TENANT],
            ),
            "filter": {
                "extension_filter": extension(
                    "access_loggers.extension_filters.cel",
                    "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                    expression=UNPLANNED,
                )
            },
        },
    ]
