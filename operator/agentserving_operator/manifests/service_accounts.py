"""An identity for each part; none of them has a token, since none of them speaks to Kubernetes. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import Cluster, Component, Manifest, made


def service_account(cluster: Cluster, component: Component) -> Manifest:
    """Without a token."""
    return made(cluster, "v1", "ServiceAccount", component, automountServiceAccountToken=False)
