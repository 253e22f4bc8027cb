"""What kopf is told: which events touch which cluster. Nothing is decided here, and nothing is written.

Only `on.event`: kopf's timers and daemons put a finalizer on the object, with which a cluster could not be deleted
while the operator is down. The regular round is a task of ours (`__main__`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from agentserving_operator.api_server import CHILD_KINDS, resource_of
from agentserving_operator.manifests.common import MANAGER
from agentserving_operator.spec.crd import GROUP, KIND, PLURAL, VERSION
from agentserving_operator.visits import Visits

# A watch that the network has lost without a word is opened again; kopf's default would wait for ever.
# The first goes into the URL, where the API server takes whole numbers only.
SERVER_TIMEOUT_S, CLIENT_TIMEOUT_S, CONNECT_TIMEOUT_S = 300, 330.0, 10.0


def clusters_of(meta: Mapping[str, Any]) -> set[str]:
    """Names of the clusters that an object belongs to: by its owner, and by its labels, so that losing one is told."""
    found = {str(owner["name"]) for owner in meta.get("ownerReferences", ()) if owner.get("kind") == KIND}
    labels = meta.get("labels", {})
    if labels.get("app.kubernetes.io/managed-by") == MANAGER and labels.get("app.kubernetes.io/instance"):
        found.add(str(labels["app.kubernetes.io/instance"]))
    return found


def register(visits: Visits) -> kopf.OperatorRegistry:
    """A registry with all handlers."""
    registry = kopf.OperatorRegistry()

    async def cluster_event(namespace: str | None, name: str | None, **_: Any) -> None:
        visits.touch(str(namespace), str(name))

    async def child_event(namespace: str | None, meta: Mapping[str, Any], **_: Any) -> None:
        for name in clusters_of(meta):
            visits.touch(str(namespace), name)

    def is_ours(meta: Mapping[str, Any], **_: Any) -> bool:
        return bool(clusters_of(meta))

    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # Without the `kubernetes` package's synchronous client, which kopf would take.
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(cluster_event)
    for kind in (*CHILD_KINDS, "Pod"):
        group, version, plural = resource_of(kind)
        kopf.on.event(group, version, plural, when=is_ours, registry=registry)(child_event)
    return registry


def settings() -> kopf.OperatorSettings:
    """kopf's settings: no state on objects, no Events of its own, watches that end."""
    found = kopf.OperatorSettings()
    found.watching.server_timeout = SERVER_TIMEOUT_S
    found.watching.client_timeout = CLIENT_TIMEOUT_S
    found.watching.connect_timeout = CONNECT_TIMEOUT_S
    found.posting.enabled = False
    # The CRD is there before we are: looking out for it would need rights on all CRDs and namespaces.
    found.scanning.disabled = True
    found.persistence.finalizer = f"{GROUP}/operator"
    found.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    found.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    return found
