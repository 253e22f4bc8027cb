"""Which objects belong to a cluster, and what it means when one cannot be written. Pure."""

from __future__ import annotations

from agentserving_operator.errors import RefusedError
from agentserving_operator.manifests import AgentServingCluster, Manifest
from agentserving_operator.manifests.common import MANAGED_BY, MANAGER
from agentserving_operator.observe.reasons import Reason, Trouble

# Kinds of others, and what it means that they are not installed.
_OPTIONAL = {
    "Certificate": Trouble(
        Reason.CERT_MANAGER_MISSING,
        "cert-manager is not installed in this Kubernetes cluster: install it, or use spec.tls.issuer Operator",
    ),
    "InferencePool": Trouble(
        Reason.INFERENCE_EXTENSION_MISSING,
        "the Gateway API Inference Extension is not installed in this Kubernetes cluster: install its CRDs "
        "(inference.networking.k8s.io/v1), or set spec.gateway.inferencePool.enabled to false",
    ),
    "LeaderWorkerSet": Trouble(
        Reason.LEADER_WORKER_SET_MISSING,
        "spec.engine.nodes needs LeaderWorkerSet (leaderworkerset.x-k8s.io/v1), which is not installed in this "
        "Kubernetes cluster: install its controller and CRD (https://lws.sigs.k8s.io), or create a cluster with "
        "engine.nodes 1",
    ),
    "HTTPRoute": Trouble(
        Reason.GATEWAY_API_MISSING,
        "the Gateway API is not installed in this Kubernetes cluster: install its CRDs (gateway.networking.k8s.io/v1), "
        "or use spec.gateway.ingress instead of spec.gateway.httpRoute",
    ),
}

# Words of the API server about fields that cannot change.
_IMMUTABLE = ("updates to statefulset spec", "field is immutable", "may not be changed", "may not change once set")
_REPLACE = {
    "StatefulSet": "kubectl delete statefulset {0} --cascade=orphan; its pods go on, and the operator makes it again. "
    "Claims of volumes stay as they are",
}


def labels_of(name: str) -> dict[str, str]:
    """Labels that all objects of a cluster have, and by which they are listed."""
    return {"app.kubernetes.io/instance": name, MANAGED_BY: MANAGER}


def is_owned(live: Manifest, cluster: AgentServingCluster) -> bool:
    """By its owner reference."""
    return any(owner["uid"] == cluster.uid for owner in live["metadata"].get("ownerReferences", []))


def may_take(live: Manifest, cluster: AgentServingCluster) -> bool:
    """Whether the object is ours, or an orphan that was.

    A cluster that was deleted with --cascade=orphan and created again takes its objects back, but not its Secrets:
    anyone may have written the labels of an orphan, and the holder of a CA's or a ticket's key can act as anyone.
    """
    metadata = live["metadata"]
    if live["kind"] == "Secret":
        return is_owned(live, cluster)
    orphan = not any(owner.get("controller") for owner in metadata.get("ownerReferences", []))
    return is_owned(live, cluster) or (orphan and labels_of(cluster.name).items() <= metadata.get("labels", {}).items())


def name_taken(kind: str, name: str) -> Trouble:
    """An object of someone else has the name that we need."""
    message = f"{kind} {name} exists and does not belong to this cluster: delete or rename it, or rename the cluster"
    return Trouble(Reason.NAME_TAKEN, message)


def refused(kind: str, name: str, error: RefusedError) -> Trouble:
    """Why the API server refused an object."""
    message = f"{kind} {name}: {error}"
    if "being terminated" in message:
        return Trouble(Reason.NAMESPACE_TERMINATING, message)
    if "exceeded quota" in message:
        return Trouble(Reason.QUOTA_EXCEEDED, message)
    if kind in _OPTIONAL and error.status == 404 and not error.reason:
        # A missing object is answered with a Status that has a reason; a missing kind is not.
        return _OPTIONAL[kind]
    # Nothing of a Secret is lost without a decision.
    if kind != "Secret" and error.status == 422 and any(words in message for words in _IMMUTABLE):
        how = _REPLACE.get(kind, f"kubectl delete {kind.lower()} {name}; the operator makes it again")
        return Trouble(
            Reason.CANNOT_BE_CHANGED, f"{message}. Undo the change, or replace the object: {how.format(name)}"
        )
    return Trouble(Reason.APPLY_REFUSED, message)
