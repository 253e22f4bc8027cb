"""A ServiceAccount for each component. None has a token, because none of them uses the Kubernetes API. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Component, Manifest, child_object


def service_account(cluster: AgentServingCluster, component: Component) -> Manifest:
    return child_object(cluster, "v1", "ServiceAccount", component, automountServiceAccountToken=False)
