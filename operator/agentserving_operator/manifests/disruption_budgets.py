"""How many pods of a part may be evicted at once. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object, selector


def disruption_budget(cluster: AgentServingCluster, component: Component) -> Manifest:
    """One at a time. Of a part with one pod that one: a node could not be drained else."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(cluster.name, component)},
        # A pod that does not serve is in nobody's way.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return child_object(cluster, "policy/v1", "PodDisruptionBudget", component, spec=spec)
