"""Which objects are a cluster's, and what to say of those that are not, or may not be written. Pure."""

from __future__ import annotations

from agentserving_operator.api_server import RefusedError
from agentserving_operator.manifests import Cluster, Manifest
from agentserving_operator.manifests.common import MANAGER
from agentserving_operator.observe.reasons import Reason, Trouble


def labels_of(name: str) -> dict[str, str]:
    """Of all objects of a cluster."""
    return {"app.kubernetes.io/instance": name, "app.kubernetes.io/managed-by": MANAGER}


def is_owned(live: Manifest, cluster: Cluster) -> bool:
    """By its owner reference."""
    return any(owner["uid"] == cluster.uid for owner in live["metadata"].get("ownerReferences", []))


def may_take(live: Manifest, cluster: Cluster) -> bool:
    """Ours, or an orphan that was: a cluster deleted with --cascade=orphan and made anew takes its children back."""
    metadata = live["metadata"]
    orphan = not any(owner.get("controller") for owner in metadata.get("ownerReferences", []))
    return is_owned(live, cluster) or (orphan and labels_of(cluster.name).items() <= metadata.get("labels", {}).items())


def name_taken(kind: str, name: str) -> Trouble:
    """Somebody else's object is in the way."""
    told = f"{kind} {name} is there and does not belong to this cluster: delete or rename it, or rename the cluster"
    return Trouble(Reason.NAME_TAKEN, told)


def refused(kind: str, name: str, error: RefusedError) -> Trouble:
    """What the API server's no means."""
    told = f"{kind} {name}: {error}"
    if "being terminated" in told:
        return Trouble(Reason.NAMESPACE_TERMINATING, told)
    if "exceeded quota" in told:
        return Trouble(Reason.QUOTA_EXCEEDED, told)
    if kind == "Certificate" and error.status == 404 and not error.reason:
        # Not the object is missing but its kind: that answer is no Status.
        told = "there is no cert-manager in this Kubernetes cluster: install it, or use spec.tls.issuer Operator"
        return Trouble(Reason.CERT_MANAGER_MISSING, told)
    return Trouble(Reason.APPLY_REFUSED, told)
