"""What the operator counts. No label names a cluster: there may be many."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

VISITS = Counter("agentserving_operator_reconciles", "Visits of a cluster, by how they ended.", ["outcome"])
VISIT_SECONDS = Histogram("agentserving_operator_reconcile_seconds", "How long a visit took.")
API_CALLS = Counter("agentserving_operator_api_calls", "Requests to the API server.", ["verb"])
LAST_VISIT = Gauge("agentserving_operator_last_reconcile_timestamp_seconds", "When a visit ended last, Unix time.")
