"""A cluster of real vLLM on the CPU: the tiny model and vLLM itself are in a directory of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kube import agents
from kube.demo import Demo
from kube.kubectl import Kubectl

ENV = [
    # Cores of vLLM's threads.
    {"name": "VLLM_CPU_OMP_THREADS_BIND", "value": "0"},
    # With tensor parallelism a part of the embedding is compiled, and the image has no C++ compiler.
    {"name": "TORCHDYNAMO_DISABLE", "value": "1"},
]


def volume(models: str) -> list[dict[str, Any]]:
    """The machine's directory with vLLM and the model, as a claim: how a cluster gives models to its engines."""
    size, modes = {"storage": "20Gi"}, ["ReadWriteMany"]
    return [
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "e2e-models"},
            "spec": {
                "capacity": size, "accessModes": modes, "storageClassName": "e2e-models",
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": models, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
            "spec": {
                "accessModes": modes, "storageClassName": "e2e-models", "volumeName": "e2e-models",
                "resources": {"requests": size},
            },
        },
    ]  # fmt: skip


def cluster(image: str, more: dict[str, Any]) -> dict[str, Any]:
    """One engine without devices; `more` of the spec's `engine`."""
    engine = {
        "type": "VLLM",
        "image": image,
        "drainSeconds": 10,
        "startupSeconds": 400,
        "sharedMemory": "1Gi",
        "extraArgs": ["--load-format", "dummy", "--enforce-eager", "--dtype", "float32"],
        # All of vLLM's processes together have one core: with more they starve the others of a node of two, and a
        # newcomer that the control plane has no time to admit waits behind all.
        "resources": {"requests": {"cpu": "200m", "memory": "2Gi"}, "limits": {"cpu": "1"}},
        "template": {"spec": {"containers": [{"name": "engine", "env": ENV}]}},
        **more,
    }
    engine["accelerator"] = {"count": 0, "products": [], "tolerations": [], **more.get("accelerator", {})}  # fmt: skip
    model = {
        "name": "/models/tiny-llama-1", "servedName": "tiny", "maxLength": 8192,
        "cache": {"type": "ExistingClaim", "claimName": "models"},
    }  # fmt: skip
    spec = {"model": model, "engine": engine, "scheduling": {"policy": "atlas"}, "store": {"type": "Memory"}}
    # Next to the demo, on a node of two cores.
    little = {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
    kind = {"apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster", "metadata": {"name": "demo"}}
    return {
        **kind,
        "spec": {
            **spec,
            "tls": {"issuer": "Operator", "engines": True},
            "auth": {"clients": "None"},
            "controlPlane": little,
            "gateway": little | {"drainSeconds": 0},
        },
    }


@contextmanager
def real_vllm(namespace: str, engine: dict[str, Any]) -> Iterator[Demo]:
    """The cluster in a namespace of its own, with an agent's pod. Clients need no keys; engines ask for certificates.

    Skips the test where there is no CPU vLLM. `engine`: more of the spec's `engine`.
    """
    models, image = os.environ.get("E2E_MODELS"), os.environ.get("E2E_ENGINE_IMAGE")
    if not models or not image:
        pytest.skip("no CPU vLLM for engine pods: CLUSTER=bare has it after `make test` has made the environment")
    kubectl = Kubectl(namespace)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    try:
        kubectl.apply(*volume(models), cluster(image, engine))
        agents.start(kubectl, "")
        yield Demo(kubectl)
    finally:
        kubectl("delete", "asc/demo", "--ignore-not-found")
        kubectl("delete", "namespace", namespace, "--wait=true", bound_s=300)
        kubectl("delete", "pv", "e2e-models", "--ignore-not-found")
