"""Configurations of peers: one core, two engines, connections kept, nothing buffered. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_TYPE = "type.googleapis.com/envoy.extensions."
_UNBOUNDED = {"thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100_000)]}


def envoy(port: int, engines: Sequence[int]) -> Json:
    """Envoy without a picker: least requests over the engines."""
    endpoints = [_endpoint(each) for each in engines]
    cluster = {
        "name": "engines", "type": "STATIC", "lb_policy": "LEAST_REQUEST", "connect_timeout": "2s",
        "circuit_breakers": _UNBOUNDED,
        "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
    }  # fmt: skip
    return _bootstrap(port, [cluster], [])


def envoy_with_epp(port: int, grpc: int) -> Json:
    """Envoy that asks an endpoint picker by ext_proc and goes where that says, as llm-d's documents have it."""
    picker = {
        "name": "epp", "type": "STATIC", "connect_timeout": "2s", "circuit_breakers": _UNBOUNDED,
        "load_assignment": {"cluster_name": "epp", "endpoints": [{"lb_endpoints": [_endpoint(grpc)]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }  # fmt: skip
    engines = {
        "name": "engines", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "2s",
        "circuit_breakers": _UNBOUNDED,
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": "x-gateway-destination-endpoint"},
    }  # fmt: skip
    modes = dict.fromkeys(("request_header_mode", "response_header_mode"), "SEND")
    modes |= dict.fromkeys(("request_body_mode", "response_body_mode"), "FULL_DUPLEX_STREAMED")
    modes |= dict.fromkeys(("request_trailer_mode", "response_trailer_mode"), "SEND")
    asks = {
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": f"{_TYPE}filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "epp", "authority": "localhost"}, "timeout": "10s"},
            "processing_mode": modes, "message_timeout": "1000s",
        },
    }  # fmt: skip
    return _bootstrap(port, [picker, engines], [asks])


def _endpoint(port: int) -> Json:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def _bootstrap(port: int, clusters: list[Json], filters: list[Json]) -> Json:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s", "idle_timeout": "0s"}}]
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}filters.http.router.v3.Router", "suppress_envoy_headers": True},
    }
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "front", "codec_type": "AUTO", "generate_request_id": False, "stream_idle_timeout": "0s",
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            "http_filters": [*filters, router],
        },
    }  # fmt: skip
    listener = {
        "name": "front",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [manager]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def nginx(port: int, engines: Sequence[int], home: Path) -> str:
    """The floor: it knows nothing of models."""
    servers = " ".join(f"server 127.0.0.1:{each};" for each in engines)
    return f"""
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/error.log crit;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_max_body_size 64m; keepalive_requests 1000000; keepalive_timeout 600;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  upstream engines {{ {servers} keepalive 4000; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
}}
"""


def haproxy(port: int, engines: Sequence[int], home: Path) -> str:
    servers = "\n".join(f"  server e{each} 127.0.0.1:{each}" for each in engines)
    return f"""
global
  nbthread 1
  maxconn 4000
  hard-stop-after 1s
  stats socket {home}/haproxy.sock
defaults
  mode http
  timeout client 600s
  timeout server 600s
  timeout connect 2s
  http-reuse always
listen front
  bind 127.0.0.1:{port} backlog 4096
  balance leastconn
{servers}
"""


def endpoints(engines: Sequence[int]) -> str:
    """llm-d's file of endpoints; JSON is YAML."""
    return json.dumps(
        {"endpoints": [{"name": f"e{each}", "address": "127.0.0.1", "port": str(each)} for each in engines]}
    )


def epp(file: Path) -> str:
    """llm-d's endpoint picker with its usual scorers, without Kubernetes."""
    scorers = {"prefix-cache-scorer": 3, "queue-scorer": 2, "kv-cache-utilization-scorer": 2}
    plugins: list[Json] = [{"type": kind} for kind in (*scorers, "max-score-picker", "single-profile-handler")]
    plugins.append({"name": "file", "type": "file-discovery", "parameters": {"path": str(file)}})
    profile = [{"pluginRef": name, "weight": weight} for name, weight in scorers.items()]
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": plugins,
            "schedulingProfiles": [{"name": "default", "plugins": [*profile, {"pluginRef": "max-score-picker"}]}],
            "dataLayer": {"discovery": {"pluginRef": "file"}},
        }
    )


def litellm(engines: Sequence[int]) -> str:
    """One model on all engines."""
    return json.dumps(
        {
            "model_list": [
                {
                    "model_name": "tiny",
                    "litellm_params": {
                        "model": "openai/tiny", "api_base": f"http://127.0.0.1:{each}/v1", "api_key": "none",
                    },
                }
                for each in engines
            ],
            "general_settings": {"master_key": "sk-1234"},
            "litellm_settings": {"telemetry": False, "num_retries": 0},
        }
    )  # fmt: skip
