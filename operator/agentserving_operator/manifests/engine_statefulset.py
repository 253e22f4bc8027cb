"""The StatefulSet of the engines: one pod each, with a stable name. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import (
    AgentServingCluster,
    Component,
    Manifest,
    child_object,
    labels,
    pod,
    secret_files,
    selector,
    spread,
)
from agentserving_operator.manifests.engine_identity_container import identity_containers
from agentserving_operator.manifests.engine_pod import (
    HOME_VOLUME,
    MODEL_TOKEN_FILE,
    PUBLIC_KEYS,
    TEMPLATE_FILE,
    engine_container,
)
from agentserving_operator.manifests.metrics_token import metrics_token_volumes
from agentserving_operator.manifests.model_source import download_containers, source_volumes
from agentserving_operator.manifests.sidecar import sidecar_container
from agentserving_operator.manifests.tls import engine_volumes
from agentserving_operator.spec.cluster import CacheType, EngineType, ModelCache
from agentserving_operator.spec.parsing import plain

# For the end of the engine process and the sidecar's last reports, after the drain.
GRACE_AFTER_DRAIN_S = 60


def engine_statefulset(cluster: AgentServingCluster) -> Manifest:
    """As many engines as the spec or the autoscaler says, replaced one at a time."""
    engine, cache, engines = cluster.spec.engine, cluster.spec.model.cache, cluster.engines
    spec: Manifest = {
        "replicas": engines.count,
        **({"ordinals": {"start": engines.start}} if engine.autoscaling is not None or engines.start else {}),
        "serviceName": cluster.child(Component.ENGINE),
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        "selector": {"matchLabels": selector(cluster.name, Component.ENGINE)},
        "template": engine_template(cluster),
        # Models can be downloaded again.
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
    }
    if engine.type is EngineType.VLLM and cache.type is CacheType.CLAIM:
        spec["volumeClaimTemplates"] = [_claim(cluster, cache)]
    return child_object(cluster, "apps/v1", "StatefulSet", Component.ENGINE, spec=spec)


def engine_template(cluster: AgentServingCluster) -> Manifest:
    """The pod of an engine; of one on several nodes, the first."""
    engine = cluster.spec.engine
    vllm = engine.type is EngineType.VLLM
    placement = placement_of(cluster) if vllm else {"topologySpreadConstraints": spread(cluster, Component.ENGINE)}
    return pod(
        cluster,
        Component.ENGINE,
        # Volumes may hold models that an older version downloaded as root, into directories that only root can write.
        # They are few files, so giving all of them to the group at each start is cheap.
        change_all_groups=vllm,
        # The sidecar comes last: until the model is there, it has nothing to register.
        initContainers=[
            *identity_containers(cluster),
            *download_containers(cluster),
            sidecar_container(cluster),
        ],
        containers=[engine_container(cluster)],
        terminationGracePeriodSeconds=engine.drain_seconds + GRACE_AFTER_DRAIN_S,
        volumes=_volumes(cluster),
        **placement,
    )


def _volumes(cluster: AgentServingCluster) -> list[Manifest]:
    engine = cluster.spec.engine
    found: list[Manifest] = [
        {"name": "channel", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        # Outlives containers, not the pod: a pod that terminates has its reports acknowledged first.
        {"name": "journal", "emptyDir": {"sizeLimit": "1Gi"}},
        *scratch_volumes(cluster),
        secret_files("ticket-key", cluster.ticket_key_name, PUBLIC_KEYS),
        *metrics_token_volumes(cluster),
        *engine_volumes(cluster),
    ]
    if engine.type is EngineType.VLLM:
        found += model_volumes(cluster)
        if (template := cluster.spec.model.chat_template) is not None:
            item = {"key": template.key, "path": TEMPLATE_FILE}
            found.append({"name": "chat-template", "configMap": {"name": template.config_map_name, "items": [item]}})
    return found


def scratch_volumes(cluster: AgentServingCluster) -> list[Manifest]:
    """What an engine's processes write, on each of its nodes."""
    size = cluster.spec.engine.shared_memory
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
        {"name": "tmp", "emptyDir": {}},
    ]


def model_volumes(cluster: AgentServingCluster) -> list[Manifest]:
    """What vLLM reads and writes, on each of an engine's nodes."""
    token, cache = cluster.spec.model.token, cluster.spec.model.cache
    found: list[Manifest] = [{"name": HOME_VOLUME, "emptyDir": {}}, *source_volumes(cluster)]
    if token is not None:
        item = {"key": token.key, "path": MODEL_TOKEN_FILE}
        secret = {"secretName": token.secret_name, "defaultMode": 0o440, "items": [item]}
        found.append({"name": "model-token", "secret": secret})
    if cache.type is CacheType.EMPTY_DIR:
        found.append({"name": "model-cache", "emptyDir": {"sizeLimit": cache.size}})
    if cache.type is CacheType.EXISTING:
        found.append({"name": "model-cache", "persistentVolumeClaim": {"claimName": cache.claim_name}})
    return found


def _claim(cluster: AgentServingCluster, cache: ModelCache) -> Manifest:
    spec: Manifest = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": cache.size}}}
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {"metadata": {"name": "model-cache", "labels": labels(cluster.name, Component.ENGINE)}, "spec": spec}


def placement_of(cluster: AgentServingCluster) -> Manifest:
    """Nodes with the engine's devices."""
    accelerator = cluster.spec.engine.accelerator
    found: Manifest = {}
    if accelerator.products and accelerator.count:
        product = {"key": accelerator.product_label, "operator": "In", "values": list(accelerator.products)}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [product]}]}
        found["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    if accelerator.node_selector:
        found["nodeSelector"] = dict(accelerator.node_selector)
    if accelerator.tolerations:
        found["tolerations"] = [plain(each) for each in accelerator.tolerations]
    return found
