"""The servers behind the front: the engines and the picker's three sockets. Pure."""

from __future__ import annotations

from agentserving_process.addresses import split_address

from agentserving_gateway.envoy.certificates import upstream
from agentserving_gateway.envoy.extensions import Json, extension, seconds, typed
from agentserving_gateway.envoy.filters import PICKER
from agentserving_gateway.envoy.names import ENDPOINTS
from agentserving_gateway.envoy.settings import FrontSettings

ENGINES, READS, LOG, BATCHES = "engines", "reads", "log", "batches"
# A request must not meet the engine's end of its idle connection: ours wait longer (contract.engine_http), and uvicorn
# waits 5 s unless it is told otherwise.
ENGINE_IDLE_S = 4.0
CONNECT_S = 2.0
# Before the path of a Unix socket, where an address is expected.
UNIX = "unix:"
MANY = 100_000
# TCP_USER_TIMEOUT: data that stays unacknowledged for so long breaks a connection; keepalive does not probe it. Linux
# also counts a body that a busy engine has not read yet: longer than any pause of an engine's HTTP server.
UNACKNOWLEDGED_MS = 30_000
_LOST_PEER: Json = {"level": 6, "name": 18, "int_value": UNACKNOWLEDGED_MS, "state": "STATE_PREBIND"}

_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def clusters(settings: FrontSettings) -> list[Json]:
    """Clusters of the configuration: the picker, its reads, the access log, the engines, the batch service."""
    batches = [_batches(settings)] if settings.batches else []
    return [_picker(settings), _reads(settings), _log(settings), _engines(settings), *batches]


def _engines(settings: FrontSettings) -> Json:
    file = settings.engines_file
    return {
        **({} if settings.engine_ca is None else {"transport_socket": upstream(settings)}),
        "name": ENGINES,
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(file), "watched_directory": {"path": str(file.parent)}},
            }
        },
        "connect_timeout": seconds(CONNECT_S),
        "per_connection_buffer_limit_bytes": 1 << 20,
        # No engine that the leader calls unhealthy is better than none that it calls healthy.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_balancing_policy": {"policies": [{"typed_extension_config": _named_engine()}]},
        "circuit_breakers": _unbounded(),
        # A node that is gone answers neither probes nor data.
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 4, "keepalive_interval": 2}
        },
        "upstream_bind_config": {"socket_options": [_LOST_PEER]},
        "typed_extension_protocol_options": _http1(idle_timeout=seconds(ENGINE_IDLE_S)),
    }


def _named_engine() -> Json:
    """The engines that the picker names, in its order; without a name the program's place on a ring."""
    kind = "extensions.load_balancing_policies"
    ring = extension("load_balancing_policies.maglev", f"{kind}.maglev.v3.Maglev")
    return extension(
        "load_balancing_policies.override_host",
        f"{kind}.override_host.v3.OverrideHost",
        override_host_sources=[{"header": ENDPOINTS}],
        fallback_policy={"policies": [{"typed_extension_config": ring}]},
    )


def _picker(settings: FrontSettings) -> Json:
    picker = {**_socket(PICKER, settings.picker_socket), "typed_extension_protocol_options": _http1()}
    if settings.client_keys:
        # No health check: it would refuse calls that a slow picker serves a moment later, and nothing else serves them.
        return picker
    return {
        **picker,
        # A picker that hangs must not delay each call by its whole timeout.
        "health_checks": [
            {
                "timeout": "0.5s", "interval": "0.25s", "no_traffic_interval": "0.25s",
                "unhealthy_threshold": 2, "healthy_threshold": 1, "reuse_connection": True,
                "http_health_check": {"path": "/healthz", "host": PICKER},
            }
        ],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "close_connections_on_host_health_failure": True,
    }  # fmt: skip


def _reads(settings: FrontSettings) -> Json:
    return {**_socket(READS, settings.reads_socket), "typed_extension_protocol_options": _http1()}


def _log(settings: FrontSettings) -> Json:
    options: Json = {_HTTP: typed(_HTTP.removeprefix("envoy."), explicit_http_config={"http2_protocol_options": {}})}
    return {**_socket(LOG, settings.log_socket), "typed_extension_protocol_options": options}


def _batches(settings: FrontSettings) -> Json:
    """The batch service; what it is sent says by its signature who asks, so an address may be anything that reaches
    it."""
    http = {"typed_extension_protocol_options": _http1(idle_timeout=seconds(ENGINE_IDLE_S))}
    if settings.batches.startswith(UNIX):
        return {**_socket(BATCHES, settings.batches.removeprefix(UNIX)), **http}
    host, port = split_address(settings.batches)
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    return {
        **_one_endpoint(BATCHES, endpoint),
        "type": "STRICT_DNS",
        # A name with addresses of both families may have a server on one of them.
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": seconds(CONNECT_S),
        **http,
    }


def _socket(name: str, path: str) -> Json:
    return _one_endpoint(name, {"endpoint": {"address": {"pipe": {"path": path}}}})


def _one_endpoint(name: str, endpoint: Json) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "circuit_breakers": _unbounded(),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _unbounded() -> Json:
    """The listener's limit on connections is the only one."""
    bounds = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), MANY)
    return {"thresholds": [{**bounds, "max_retries": MANY}]}


def _http1(**common: object) -> Json:
    return {
        _HTTP: typed(
            _HTTP.removeprefix("envoy."),
            common_http_protocol_options=common,
            explicit_http_config={"http_protocol_options": {}},
        )
    }
