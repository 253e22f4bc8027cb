"""The model's files from an OCI image or from S3: a volume, an init container, and the path that vLLM loads. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import PYTHON_ENV, AgentServingCluster, Manifest, container, python
from agentserving_operator.model_path import directory_of
from agentserving_operator.spec.model_files import S3Source

MODELS_DIR = "/models"
IMAGE_VOLUME, IMAGE_DIR = "model-image", "/model-image"


def model_path(cluster: AgentServingCluster) -> str:
    """What vLLM's --model is: a directory in the container, or the model's name."""
    source = cluster.spec.model.source
    if source is None:
        return cluster.spec.model.name
    if source.image is not None:
        return IMAGE_DIR if source.image.path is None else f"{IMAGE_DIR}/{source.image.path}"
    assert source.s3 is not None
    return directory_of(MODELS_DIR, source.s3.uri, source.s3.endpoint or "")


def source_volumes(cluster: AgentServingCluster) -> list[Manifest]:
    """The volume of source.image: the kubelet pulls it as it pulls images of containers."""
    source = cluster.spec.model.source
    if source is None or source.image is None:
        return []
    image = {"reference": source.image.reference, "pullPolicy": source.image.pull_policy.value}
    return [{"name": IMAGE_VOLUME, "image": image}]


def source_mounts(cluster: AgentServingCluster) -> list[Manifest]:
    """Where the engine's container has it."""
    found = source_volumes(cluster)
    return [{"name": IMAGE_VOLUME, "mountPath": IMAGE_DIR, "readOnly": True}] if found else []


def download_containers(cluster: AgentServingCluster) -> list[Manifest]:
    """The init container of source.s3, which ends when the files are in the cache's volume."""
    source = cluster.spec.model.source
    if source is None or source.s3 is None:
        return []
    return [_download(cluster, source.s3)]


def _download(cluster: AgentServingCluster, source: S3Source) -> Manifest:
    optional = [("--endpoint", source.endpoint), ("--region", source.region)]
    flags = [word for flag, value in optional if value is not None for word in (flag, value)]
    secrets = [] if source.secret_name is None else [{"secretRef": {"name": source.secret_name}}]
    return container(
        cluster,
        "model",
        cluster.images.agentserving,
        # Parts of files are in memory while they arrive.
        {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "4", "memory": "2Gi"}},
        **python("agentserving_operator.model_download", "--uri", source.uri, "--root", MODELS_DIR, *flags),
        env=[*PYTHON_ENV],
        **({"envFrom": secrets} if secrets else {}),
        volumeMounts=[{"name": "model-cache", "mountPath": MODELS_DIR}],
    )
