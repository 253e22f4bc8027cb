"""The container that gives an engine pod its own certificate, and only that. Pure.

It is the only one that mounts the Secret with all engines' certificates. It opens no port.
"""

from __future__ import annotations

from agentserving_operator.manifests.common import PYTHON_ENV, AgentServingCluster, Manifest, container, python
from agentserving_operator.manifests.tls import ENGINE_CURRENT_DIR, ENGINE_DIR, ENGINES_DIR

_IS_THERE = f"import os, sys; sys.exit(not os.path.exists('{ENGINE_CURRENT_DIR}'))"


def identity_containers(cluster: AgentServingCluster) -> list[Manifest]:
    """A native sidecar, because certificates are renewed while the pod runs; none without TLS.

    kubelet starts the next container when this one's certificate is there.
    """
    if not cluster.spec.tls.on:
        return []
    made = container(
        cluster,
        "identity",
        cluster.images.agentserving,
        {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
        restartPolicy="Always",
        **python(
            "agentserving_operator.engine_identity",
            "--engine-id", "$(POD_NAME)", "--source", ENGINES_DIR, "--target", ENGINE_DIR,
        ),
        env=[{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, *PYTHON_ENV],
        ports=[],
        volumeMounts=[
            {"name": "engine-identities", "mountPath": ENGINES_DIR, "readOnly": True},
            {"name": "engine-tls", "mountPath": ENGINE_DIR},
        ],
        startupProbe={
            "exec": {"command": ["python", "-S", "-c", _IS_THERE]},
            "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 600,
        },
    )  # fmt: skip
    return [made]
