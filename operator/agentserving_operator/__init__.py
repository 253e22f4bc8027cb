"""The operator: turns an AgentServingCluster into etcd, control plane, gateway and engines, and reports their state.

`spec` is the single source of what a user may write, `manifests` derives the objects that a cluster needs, `observe`
derives its conditions; all three are pure. `certificates` issues what TLS needs. `reconcile` visits one cluster,
`visits` decides when, and `watches` and `rounds` find out that a visit is due. `api_server` alone talks to Kubernetes,
`control_planes` alone to control planes. `etcd_member` is a program of its own, which runs in etcd's pods.

Concurrency: one event loop. Each cluster is visited by one task, so visits of it never overlap; nothing else writes.
"""

# Before anything imports structlog.
import agentserving_process  # noqa: F401
