"""The whole of Envoy's configuration. Pure."""

from __future__ import annotations

from agentserving_gateway.envoy.clusters import clusters
from agentserving_gateway.envoy.extensions import Json, seconds, typed
from agentserving_gateway.envoy.listener import listener
from agentserving_gateway.envoy.settings import FrontSettings

# Shares of the connections: from the first one on idle connections are closed earlier, from the second one on soonest.
CROWDED, FULL = 0.6, 0.85


def bootstrap(settings: FrontSettings) -> Json:
    """The document that `envoy --config-path` reads."""
    return {
        "node": {"id": "front", "cluster": "agentserving"},
        "admin": {"address": {"pipe": {"path": settings.admin_socket, "mode": 0o600}}},
        "overload_manager": _overload(settings),
        "static_resources": {"listeners": [listener(settings)], "clusters": clusters(settings)},
    }


def _overload(settings: FrontSettings) -> Json:
    monitor, kind = "envoy.resource_monitors", "extensions.resource_monitors"
    heap, connections = f"{monitor}.fixed_heap", f"{monitor}.global_downstream_max_connections"
    crowd = f"{monitor}.injected_resource"
    soonest = {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": seconds(settings.crowded_keep_alive_s)}
    return {
        # What arrives in between is beyond the limit: at 10 Gb/s, 60 MB.
        "refresh_interval": "0.05s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": typed(
                    f"{kind}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=settings.max_heap_bytes
                ),
            },
            {
                "name": connections,
                "typed_config": typed(
                    f"{kind}.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=settings.max_connections,
                ),
            },
            {
                "name": crowd,
                "typed_config": typed(
                    f"{kind}.injected_resource.v3.InjectedResourceConfig", filename=str(settings.crowd_file)
                ),
            },
        ],
        "actions": [
            {
                "name": "envoy.overload_actions.stop_accepting_requests",
                "triggers": [{"name": heap, "threshold": {"value": 0.9}}],
            },
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.7, "saturation_threshold": 0.95}}],
            },
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [{"name": crowd, "scaled": {"scaling_threshold": CROWDED, "saturation_threshold": FULL}}],
                "typed_config": typed(
                    "config.overload.v3.ScaleTimersOverloadActionConfig", timer_scale_factors=[soonest]
                ),
            },
        ],
        # Envoy resets streams of HTTP/2 only. A connection of HTTP/1.1 that still sends a body is ended instead.
        "loadshed_points": [
            {
                "name": "envoy.load_shed_points.http1_server_abort_dispatch",
                "triggers": [{"name": heap, "threshold": {"value": 0.95}}],
            }
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
    }
