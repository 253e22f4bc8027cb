"""How many pods of a component may be evicted together. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object, selector


def disruption_budget(cluster: AgentServingCluster, component: Component) -> Manifest:
    """One at a time. A single pod may be evicted too; otherwise its node could not be drained."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector(cluster.name, component)},
        # Evicting a pod that does not serve disrupts nothing.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return child_object(cluster, "policy/v1", "PodDisruptionBudget", component, spec=spec)
