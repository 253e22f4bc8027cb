"""The operator's metrics. No label names a cluster, because there may be many."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

VISITS = Counter("agentserving_operator_reconciles", "Visits of clusters, by outcome.", ["outcome"])
VISIT_SECONDS = Histogram("agentserving_operator_reconcile_seconds", "Duration of a visit.")
API_CALLS = Counter("agentserving_operator_api_calls", "Requests to the API server.", ["verb"])
WATCH_ERRORS = Counter("agentserving_operator_watch_errors", "Watches that ended with an error.", ["kind"])
LAST_VISIT = Gauge(
    "agentserving_operator_last_reconcile_timestamp_seconds", "Unix time of the last visit or round that ended well."
)
