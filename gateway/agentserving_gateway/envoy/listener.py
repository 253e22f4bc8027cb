"""The front's listener and its HTTP connection manager. Pure."""

from __future__ import annotations

from agentserving_gateway.envoy import access_log
from agentserving_gateway.envoy.certificates import downstream
from agentserving_gateway.envoy.extensions import Json, extension, seconds
from agentserving_gateway.envoy.filters import http_filters
from agentserving_gateway.envoy.replies import local_reply_config
from agentserving_gateway.envoy.route_table import route_config
from agentserving_gateway.envoy.settings import FrontSettings
from agentserving_gateway.routes import SHOWN

# Bytes that one connection may have in memory before its sender must wait.
BUFFER = 1 << 20


def listener(settings: FrontSettings) -> Json:
    """One address, one filter chain."""
    host, port = settings.address
    chain: Json = {"filters": [_connection_manager(settings)]}
    if settings.front_cert is not None:
        chain["transport_socket"] = downstream(settings)
    return {
        "name": "front",
        # A wildcard of IPv6 takes IPv4 as well, as in our other servers.
        "address": {"socket_address": {"address": host, "port_value": port, "ipv4_compat": host == "::"}},
        "per_connection_buffer_limit_bytes": BUFFER,
        "filter_chains": [chain],
    }


def _connection_manager(settings: FrontSettings) -> Json:
    return extension(
        "filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="front",
        codec_type="AUTO",
        server_header_transformation="PASS_THROUGH",
        use_remote_address=True,
        skip_xff_append=True,
        generate_request_id=False,
        preserve_external_request_id=True,
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        max_request_headers_kb=settings.max_head_kib,
        # A prompt may be computed for minutes before its first token.
        stream_idle_timeout="0s",
        request_headers_timeout=seconds(settings.head_s),
        request_timeout=seconds(settings.request_s),
        drain_timeout="5s",
        common_http_protocol_options={
            "idle_timeout": seconds(settings.keep_alive_s),
            "headers_with_underscores_action": "ALLOW",
            "max_headers_count": 200,
        },
        http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "gateway"},
        http2_protocol_options={
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": BUFFER,
            "initial_connection_window_size": 16 * BUFFER,
        },
        access_log=access_log.loggers(),
        local_reply_config=local_reply_config(settings.max_body_bytes, settings.max_head_kib, SHOWN),
        route_config=route_config(settings),
        http_filters=http_filters(settings),
    )
