"""The token that readers of metrics send: a Secret of the user's, mounted where metrics are served. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Manifest, secret_volume

DIRECTORY = "/etc/agentserving/metrics"
_VOLUME = "metrics-token"


def metrics_token_flags(cluster: AgentServingCluster) -> list[str]:
    """Of a process that serves metrics."""
    return ["--metrics-token-file", f"{DIRECTORY}/token"] if _name(cluster) else []


def metrics_token_volumes(cluster: AgentServingCluster) -> list[Manifest]:
    """Volumes of a pod whose metrics need a token; none where they don't."""
    name = _name(cluster)
    return [secret_volume(_VOLUME, name)] if name else []


def metrics_token_mounts(cluster: AgentServingCluster) -> list[Manifest]:
    """Mounts of a container whose metrics need a token; none where they don't."""
    return [{"name": _VOLUME, "mountPath": DIRECTORY, "readOnly": True}] if _name(cluster) else []


def _name(cluster: AgentServingCluster) -> str | None:
    return cluster.spec.network.metrics_token_secret_name
