"""Engines on several nodes: one group of pods each, the first of which is what an engine's pod is."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.manifests import Component, Manifest, components, desired
from agentserving_operator.manifests.common import selector
from agentserving_operator.manifests.engine_group import STAY, engine_group
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.network_policies import network_policy
from support.operator_objects import env_of, make_cluster, value_after

EIGHT = {"accelerator": {"count": 8}}


def group(**spec: Any) -> Manifest:
    engine = {"nodes": 2, **EIGHT, **spec.pop("engine", {})}
    found: Manifest = engine_group(make_cluster(engine=engine, **spec))["spec"]
    return found


def pods(**spec: Any) -> tuple[Manifest, Manifest]:
    """Specs of the leader and of a worker."""
    templates = group(**spec)["leaderWorkerTemplate"]
    return templates["leaderTemplate"]["spec"], templates["workerTemplate"]["spec"]


def containers(**spec: Any) -> tuple[Manifest, Manifest]:
    """vLLM's containers of the leader and of a worker."""
    leader, worker = ({each["name"]: each for each in pod["containers"]} for pod in pods(**spec))
    return leader["engine"], worker["engine"]


def test_a_group_has_a_pod_on_each_node_and_restarts_as_a_whole() -> None:
    found = group(engine={"nodes": 3, "replicas": 4})
    assert (found["replicas"], found["leaderWorkerTemplate"]["size"]) == (4, 3)
    assert found["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"


def test_engines_are_groups_or_a_statefulset_and_never_both() -> None:
    for nodes, kinds in ((1, {"StatefulSet"}), (2, {"LeaderWorkerSet"})):
        made = desired(make_cluster(engine={"nodes": nodes}))
        assert {each["kind"] for each in made if each["metadata"]["name"] == "demo-engine" and "spec" in each} & {
            "StatefulSet",
            "LeaderWorkerSet",
        } == kinds


def test_the_leader_is_the_pod_of_an_engine_with_the_address_of_its_group() -> None:
    single = engine_statefulset(make_cluster(engine=EIGHT))["spec"]["template"]["spec"]
    leader, _ = pods()
    assert [each["name"] for each in leader["initContainers"]] == [each["name"] for each in single["initContainers"]]
    vllm, _ = containers()
    assert vllm["lifecycle"] == single["containers"][0]["lifecycle"]
    wanted = {"--nnodes": "2", "--node-rank": "0", "--master-addr": "$(POD_IP)", "--distributed-executor-backend": "mp"}
    assert {flag: value_after(vllm["args"], flag) for flag in wanted} == wanted
    names = [each["name"] for each in vllm["env"]]
    assert names.index("POD_IP") < names.index("VLLM_HOST_IP")
    assert not {"--nnodes", "--master-addr"} & set(single["containers"][0]["args"])


def test_a_worker_computes_the_same_model_and_has_nothing_else_of_ours() -> None:
    adapters = [{"name": "sql", "source": "org/sql"}]
    model = {"name": "m", "maxLength": 4096, "loraAdapters": adapters, "toolParser": "hermes"}
    leader, worker = containers(model=model, engine={"extraArgs": ["--seed", "1"]})
    assert worker["command"] == ["python3", "-m", "agentserving_engine.node_worker"]
    same = ("--tensor-parallel-size", "--pipeline-parallel-size", "--max-model-len", "--load-format", "--max-lora-rank",
            "--master-port", "--nnodes", "--seed")  # fmt: skip
    assert [value_after(worker["args"], flag) for flag in same] == [value_after(leader["args"], flag) for flag in same]
    assert value_after(worker["args"], "--master-addr") == "$(LWS_LEADER_ADDRESS)"
    assert value_after(worker["args"], "--node-rank") == "$(LWS_WORKER_INDEX)"
    assert not {"--scheduler-cls", "--middleware", "--tool-call-parser", "--port"} & set(worker["args"])
    assert not [name for name in env_of(worker) if name.startswith("AGENTSERVING")]
    _, pod = pods(model=model)
    assert "initContainers" not in pod
    assert {each["name"] for each in pod["volumes"]} == {"shm", "tmp", "home", "model-cache"}
    assert {each["mountPath"] for each in worker["volumeMounts"]} >= {"/dev/shm", "/models"}
    assert worker["resources"] == leader["resources"]
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "8"}


@pytest.mark.parametrize(
    ("nodes", "accelerator", "sizes"),
    [
        (2, {"count": 8}, ("8", "2")),
        (2, {"count": 8, "tensorParallelSize": 16}, ("16", None)),
        (4, {"count": 8, "tensorParallelSize": 4}, ("4", "8")),
        (2, {"count": 8, "pipelineParallelSize": 4}, ("4", "4")),
        (2, {"count": 1}, (None, "2")),
        (2, {"count": 0, "tensorParallelSize": 2}, ("2", None)),
        (1, {"count": 8, "pipelineParallelSize": 2}, ("4", "2")),
        (1, {"count": 8, "tensorParallelSize": 2}, ("2", None)),
        (1, {"count": 8, "dataParallelSize": 8}, (None, None)),
    ],
)
def test_sizes_that_are_not_given_use_all_devices(
    nodes: int, accelerator: dict[str, Any], sizes: tuple[str | None, str | None]
) -> None:
    cluster = make_cluster(engine={"nodes": nodes, "accelerator": accelerator})
    if nodes > 1:
        (container,) = engine_group(cluster)["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"]
    else:
        (container,) = engine_statefulset(cluster)["spec"]["template"]["spec"]["containers"]
    arguments = container["args"]
    flags = ("--tensor-parallel-size", "--pipeline-parallel-size")
    assert tuple(value_after(arguments, flag) if flag in arguments else None for flag in flags) == sizes


def test_workers_stay_while_their_leader_drains() -> None:
    leader, worker = pods(engine={"drainSeconds": 100})
    assert worker["terminationGracePeriodSeconds"] > leader["terminationGracePeriodSeconds"] > 100
    assert worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1] == STAY
    compile(STAY, "STAY", "exec")


def test_services_budgets_and_pools_find_leaders_only() -> None:
    cluster = make_cluster(engine={"nodes": 2}, gateway={"inferencePool": {"enabled": True}})
    templates = engine_group(cluster)["spec"]["leaderWorkerTemplate"]
    engine = selector("demo", Component.ENGINE).items()
    assert engine <= templates["leaderTemplate"]["metadata"]["labels"].items()
    assert not engine <= templates["workerTemplate"]["metadata"]["labels"].items()
    kinds = {
        each["kind"]
        for each in desired(cluster)
        if each["kind"] != "LeaderWorkerSet" and "engine-worker" in str(each.get("spec", {}).get("podSelector"))
    }
    assert kinds == {"NetworkPolicy"}


def test_only_the_pods_of_engines_reach_each_other_on_every_port() -> None:
    cluster = make_cluster(engine={"nodes": 2})
    peers = [{"podSelector": {"matchLabels": selector("demo", each)}} for each in
             (Component.ENGINE, Component.ENGINE_WORKER)]  # fmt: skip
    for part in (Component.ENGINE, Component.ENGINE_WORKER):
        spec = network_policy(cluster, part)["spec"]
        assert {"from": peers} in spec["ingress"]
        assert {"to": peers} in spec["egress"]
    worker = network_policy(cluster, Component.ENGINE_WORKER)["spec"]
    assert worker["ingress"] == [{"from": peers}]
    assert "control-plane" not in str(worker["egress"])
    alone = network_policy(make_cluster(), Component.ENGINE)["spec"]
    assert all("ports" in each for each in (*alone["ingress"], *alone["egress"]))
    assert Component.ENGINE_WORKER not in components(make_cluster())


def test_a_template_is_for_both_without_the_leaders_own_containers_and_probes() -> None:
    template = {
        "spec": {
            "hostIPC": True,
            "containers": [
                {
                    "name": "engine",
                    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
                    "startupProbe": {"failureThreshold": 9},
                },
                {"name": "logs", "image": "logs:1"},
            ],
            "initContainers": [{"name": "sidecar", "resources": {"limits": {"cpu": "1"}}}],
        }
    }
    (made,) = [
        each
        for each in desired(make_cluster(engine={"nodes": 2, "template": template}))
        if each["kind"] == "LeaderWorkerSet"
    ]
    templates = made["spec"]["leaderWorkerTemplate"]
    leader, worker = templates["leaderTemplate"]["spec"], templates["workerTemplate"]["spec"]
    for pod in (leader, worker):
        assert pod["hostIPC"] is True
        assert [each["name"] for each in pod["containers"]] == ["engine", "logs"]
        assert env_of(pod["containers"][0])["NCCL_DEBUG"] == "INFO"
    assert leader["containers"][0]["startupProbe"]["failureThreshold"] == 9
    assert "startupProbe" not in worker["containers"][0]
    assert not worker.get("initContainers")


def test_a_simulated_engine_has_groups_too() -> None:
    leader, worker = containers(engine={"type": "Simulator"})
    assert leader["command"] == ["python", "-m", "agentserving_simulator"]
    assert worker["command"] == ["python", "-m", "agentserving_simulator.node_worker"]
    assert "nvidia.com/gpu" not in str(worker["resources"])
