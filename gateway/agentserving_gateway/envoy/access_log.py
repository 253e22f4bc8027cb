"""What Envoy records of each request: one JSON line for people, and the ends of calls for the picker. Pure.

No line contains a prompt, an answer, a query or a credential: of a path, the name of its route is recorded, since a
client may have put anything into a wrong one.
"""

from __future__ import annotations

from agentserving_gateway.envoy import names
from agentserving_gateway.envoy.clusters import LOG
from agentserving_gateway.envoy.extensions import Json, extension, seconds

# Names of the two logs of calls. An engine that has just failed must not be named again: no waiting for more entries.
UNPLANNED, UNPLANNED_FLUSH_S = "unplanned", 0.1
# Their engines have reported nearly all of these calls: an entry alone costs much more than one of many.
PASSED_ON, PASSED_ON_FLUSH_S, PASSED_ON_BYTES = "passed-on", 1.0, 1 << 16
_FAILED = "(response.code >= 300 || response.flags != 0 || upstream.request_attempt_count > 1u)"
# Ends that an engine may not report, and engines that failed, of other requests than calls, too.
_IS_UNPLANNED = f"'{names.ENDPOINTS}' in request.headers && {_FAILED}"
_IS_PASSED_ON = f"'{names.CALL_ID}' in request.headers && !{_FAILED}"

LINE: Json = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "method": "%REQ(:METHOD)%",
    "path": "%ROUTE_NAME%",
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
        _to_picker(UNPLANNED, _IS_UNPLANNED, UNPLANNED_FLUSH_S, 0, [names.CALL_ID, names.ENDPOINTS, names.TENANT]),
        _to_picker(PASSED_ON, _IS_PASSED_ON, PASSED_ON_FLUSH_S, PASSED_ON_BYTES, [names.CALL_ID, names.TENANT]),
    ]


def _to_picker(name: str, expression: str, flush_s: float, buffer_bytes: int, headers: list[str]) -> Json:
    return {
        **extension(
            "access_loggers.http_grpc",
            "extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            common_config={
                "log_name": name,
                "transport_api_version": "V3",
                "buffer_size_bytes": buffer_bytes,
                "buffer_flush_interval": seconds(flush_s),
                "grpc_service": {"envoy_grpc": {"cluster_name": LOG}},
            },
            additional_request_headers_to_log=headers,
        ),
        "filter": {
            "extension_filter": extension(
                "access_loggers.extension_filters.cel",
                "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                expression=expression,
            )
        },
    }
