"""The key that signs and verifies tickets. Pure: the random bytes are an argument."""

from __future__ import annotations

import base64

from agentserving_operator.manifests.common import Cluster, Component, Manifest, made

KEY_BYTES = 32


def ticket_key_secret(cluster: Cluster, key: bytes) -> Manifest:
    """Made once and never written again: engines and control plane must have the same one."""
    data = {"key": base64.b64encode(key).decode()}
    return made(
        cluster,
        "v1",
        "Secret",
        Component.CONTROL_PLANE,
        cluster.ticket_key_name,
        type="Opaque",
        immutable=True,
        data=data,
    )
