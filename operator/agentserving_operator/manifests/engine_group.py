"""Engines on several nodes: a LeaderWorkerSet, one group of pods for each engine. Pure.

The first pod of a group (the leader) is what a StatefulSet's pod is for an engine on one node, under the same name:
vLLM's front, our scheduler in its engine core, the sidecar. Workers compute what the leader's executor sends them and
are known to nothing else: no Service, no ticket key, no control plane.

vLLM's nodes do not survive each other, so LeaderWorkerSet replaces a group as a whole once one of its containers has
restarted, or one of its pods is deleted. The leader drains first, and workers stay until it has ended (`STAY`).
"""

from __future__ import annotations

from dataclasses import replace

from agentserving_operator.manifests.common import (
    PYTHON_ENV,
    AgentServingCluster,
    Component,
    Manifest,
    Port,
    child_object,
    container,
    pod,
    python,
    spread,
)
from agentserving_operator.manifests.engine_pod import (
    engine_resources,
    loading_arguments,
    model_mounts,
    node_arguments,
    process_env,
    shared_arguments,
)
from agentserving_operator.manifests.engine_statefulset import (
    GRACE_AFTER_DRAIN_S,
    engine_template,
    model_volumes,
    placement_of,
    scratch_volumes,
)
from agentserving_operator.manifests.model_source import download_containers, model_path
from agentserving_operator.spec.cluster import EngineType
from agentserving_operator.spec.pod_template import Foreign, PodTemplate

KIND, API_VERSION = "LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1"
# The LeaderWorkerSet controller gives these to every container.
LEADER_ADDRESS, WORKER_INDEX = "$(LWS_LEADER_ADDRESS)", "$(LWS_WORKER_INDEX)"
# Of the leader's containers, those that workers do not have.
LEADER_ONLY = ("sidecar", "identity")
# Before a worker is sent SIGTERM: until the leader's port has refused three connections in a row, for it drains its
# calls meanwhile. vLLM's workers end at once, and with them every call of the engine.
STAY = (
    "import os, socket, time\n"
    "refused = 0\n"
    "while refused < 3:\n"
    "    try:\n"
    f"        socket.create_connection((os.environ['LWS_LEADER_ADDRESS'], {Port.ENGINE}), 5).close()\n"
    "        refused = 0\n"
    "    except OSError:\n"
    "        refused += 1\n"
    "    time.sleep(1)\n"
)


def engine_group(cluster: AgentServingCluster) -> Manifest:
    """As many groups as the spec or the autoscaler says, replaced one at a time."""
    spec: Manifest = {
        "replicas": cluster.engines.count,
        # The leader is not ready before its workers have joined it.
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"maxUnavailable": 1, "maxSurge": 0},
        },
        "leaderWorkerTemplate": {
            "size": cluster.spec.engine.nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": engine_template(cluster),
            "workerTemplate": worker_template(cluster),
        },
    }
    return child_object(cluster, API_VERSION, KIND, Component.ENGINE, spec=spec)


def worker_template(cluster: AgentServingCluster) -> Manifest:
    """The further pods of a group."""
    engine = cluster.spec.engine
    vllm = engine.type is EngineType.VLLM
    # Each node loads the files itself. On a shared volume one downloads them.
    downloads = download_containers(cluster)
    placement = placement_of(cluster) if vllm else {"topologySpreadConstraints": spread(cluster, Component.ENGINE)}
    made = pod(
        cluster,
        Component.ENGINE_WORKER,
        change_all_groups=vllm,
        **({"initContainers": downloads} if downloads else {}),
        containers=[_worker(cluster)],
        # Longer than the leader's, which it waits for.
        terminationGracePeriodSeconds=engine.drain_seconds + 2 * GRACE_AFTER_DRAIN_S,
        volumes=[*scratch_volumes(cluster), *(model_volumes(cluster) if vllm else [])],
        **placement,
    )
    # It needs none of its own.
    made["spec"]["serviceAccountName"] = cluster.child(Component.ENGINE)
    return made


def _worker(cluster: AgentServingCluster) -> Manifest:
    """Called engine, as the leader's: variables, mounts and resources of a template are for both."""
    engine = cluster.spec.engine
    simulated = engine.type is EngineType.SIMULATOR
    mounts: list[Manifest] = [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}]
    stay = {"preStop": {"exec": {"command": ["python" if simulated else "python3", "-c", STAY]}}}
    resources = engine_resources(cluster)
    if simulated:
        image = engine.image or cluster.images.agentserving
        process = python("agentserving_simulator.node_worker")
        return container(
            cluster, "engine", image, resources, **process, env=[*PYTHON_ENV], volumeMounts=mounts, lifecycle=stay
        )
    return container(
        cluster, "engine", engine.image or cluster.images.vllm, resources,
        command=["python3", "-m", "agentserving_engine.node_worker"],
        args=[
            "--model", model_path(cluster), *node_arguments(cluster, WORKER_INDEX, LEADER_ADDRESS),
            *loading_arguments(cluster), *shared_arguments(cluster),
        ],
        env=process_env(cluster), volumeMounts=[*mounts, *model_mounts(cluster)], lifecycle=stay,
    )  # fmt: skip


def for_workers(template: PodTemplate) -> PodTemplate:
    """What of a template of engine pods is for workers: not the leader's own containers, and no times of probes."""
    spec = template.spec
    if spec is None:
        return template
    containers, init = (_of_workers(each) for each in (spec.containers, spec.init_containers))
    return replace(template, spec=replace(spec, containers=containers, init_containers=init))


def _of_workers(given: tuple[Foreign, ...] | None) -> tuple[Foreign, ...] | None:
    if given is None:
        return None
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    return tuple(
        {field: value for field, value in each.items() if each["name"] != "engine" or field not in probes}
        for each in given
        if each["name"] not in LEADER_ONLY
    )
