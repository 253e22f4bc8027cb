"""Whether pods have addresses of the family that the spec says. Pure.

Servers that listen on the other family cannot be reached, and their own errors do not say why.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentserving_operator.manifests import AgentServingCluster, Manifest
from agentserving_operator.observe.reasons import Reason, Trouble


def family_trouble(cluster: AgentServingCluster, pods: Sequence[Manifest]) -> Trouble | None:
    """None when all is well, and while no pod has an address."""
    for pod in pods:
        address = str(pod.get("status", {}).get("podIP") or "")
        # A pod in the node's network has the node's addresses.
        if not address or pod.get("spec", {}).get("hostNetwork"):
            continue
        if (":" in address) == cluster.spec.network.pods_are_on_ipv6:
            return None
        family, others = ("IPv6", "IPv4") if ":" in address else ("IPv4", "IPv6")
        message = (
            f"pod {pod['metadata']['name']} has the address {address}, and spec.network.ipFamilies says {others}: "
            f"set it to [{family}], or with two stacks to [{family}, {others}]"
        )
        return Trouble(Reason.WRONG_IP_FAMILY, message)
    return None
