"""The gateway's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("agentserving_gateway_requests_total", "Requests by route and status", ["route", "status"])
UNMANAGED = Counter("agentserving_gateway_unmanaged_calls_total", "Calls served without the control plane")
RETRIES = Counter("agentserving_gateway_retries_total", "Calls retried on another engine before their first byte")
ENDED = Counter("agentserving_gateway_ended_calls_total", "Calls that ended without an engine's report", ["ending"])
DISCONNECTS = Counter("agentserving_gateway_disconnects_total", "Clients that left before the end")
IDENTITIES = Counter("agentserving_gateway_identities_total", "Where program ids came from", ["source"])
OPEN = Gauge("agentserving_gateway_open_calls", "Requests being served")
ADMIT_SECONDS = Histogram(
    "agentserving_gateway_admission_seconds",
    "From request read to engine chosen",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0),
)
