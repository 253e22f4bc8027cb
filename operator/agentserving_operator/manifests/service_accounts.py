"""An identity for each part; none of them has a token, since none of them speaks to Kubernetes. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object


def service_account(cluster: AgentServingCluster, component: Component) -> Manifest:
    """Without a token."""
    return child_object(cluster, "v1", "ServiceAccount", component, automountServiceAccountToken=False)
