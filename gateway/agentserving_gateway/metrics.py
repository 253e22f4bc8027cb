"""The picker's metrics. Requests, connections and clients that leave are counted by Envoy (`/envoy/metrics`)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

UNMANAGED = Counter("agentserving_gateway_unmanaged_calls_total", "Calls served without the control plane")
RETRIES = Counter("agentserving_gateway_retries_total", "Calls retried on another engine before their first byte")
ENDED = Counter("agentserving_gateway_ended_calls_total", "Calls that ended without an engine's report", ["ending"])
IDENTITIES = Counter("agentserving_gateway_identities_total", "Where program ids came from", ["source"])
UNAUTHENTICATED = Counter("agentserving_gateway_unauthenticated_total", "Requests without a valid key", ["reason"])
HELD = Gauge("agentserving_gateway_held_calls", "Calls that wait for an engine because there is none")
HELD_BY_BUDGET = Gauge(
    "agentserving_gateway_held_by_budget_calls", "Calls that wait because the budget of their program is spent"
)
KEYS = Gauge("agentserving_gateway_keys", "Keys of clients that the leader has sent")
ADMIT_SECONDS = Histogram(
    "agentserving_gateway_admission_seconds",
    "From the request's head to the choice of an engine",
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0),
)

_COUNTERS: dict[str, Counter] = {}


def identified(source: str) -> None:
    """Counts a call by where its program id came from."""
    counter = _COUNTERS.get(source)
    if counter is None:
        # Looking a child up costs several times what counting does.
        counter = _COUNTERS[source] = IDENTITIES.labels(source)
    counter.inc()
