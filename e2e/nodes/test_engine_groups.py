"""Engines on several nodes, by LeaderWorkerSet's own controller: pods, drains, restarts and sizes of groups.

Engines are simulated, except in the last case: real vLLM with tensor parallelism over two pods, on the CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kube import agents
from kube.agents import Load
from kube.client import eventually
from kube.cpu_vllm import real_vllm
from kube.demo import Demo, new_key
from kube.kubectl import Kubectl, run
from kube.leader_worker_set import leader_worker_set_module

NAMESPACE, LWS_NAMESPACE = "e2e-groups", "lws-system"
# Calls of a program, with 4 tokens each; prints their statuses.
CALLS = """
import json, sys, urllib.request
body = {"model": "tiny", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}
head = {"content-type": "application/json", "x-agentserving-program-id": "over-pods"}
for _ in range(2):
    request = urllib.request.Request(sys.argv[1] + "/completions", json.dumps(body).encode(), head)
    print(urllib.request.urlopen(request, timeout=240).status)
"""
LITTLE: dict[str, Any] = {"resources": {"requests": {"cpu": "25m", "memory": "64Mi"}}}


def spec(replicas: int) -> dict[str, Any]:
    """Small simulated engines on two nodes each; a node may be the same as the other."""
    return {
        "apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster",
        "metadata": {"name": "demo", "namespace": NAMESPACE},
        "spec": {
            "model": {"name": "tiny"}, "store": {"type": "Memory"}, "controlPlane": LITTLE,
            "gateway": {**LITTLE, "drainSeconds": 0},
            "engine": {**LITTLE, "type": "Simulator", "nodes": 2, "replicas": replicas, "drainSeconds": 60},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def controller(operator: Kubectl) -> Iterator[None]:
    """LeaderWorkerSet's controller with its webhooks, from the chart of its module."""
    version = leader_worker_set_module().name.partition("@")[2]
    settings = (
        f"image.manager.tag={version}", "image.manager.pullPolicy=IfNotPresent", "resources.requests.cpu=25m",
        "resources.requests.memory=64Mi",
    )  # fmt: skip
    sets = [word for each in settings for word in ("--set", each)]
    run(
        "helm", "install", "lws", str(leader_worker_set_module() / "charts/lws"), "-n", LWS_NAMESPACE,
        "--create-namespace", "--wait", "--timeout", "3m", *sets, bound_s=200,
    )  # fmt: skip
    try:
        yield
    finally:
        run("helm", "uninstall", "lws", "-n", LWS_NAMESPACE, "--wait", bound_s=120)
        run("kubectl", "delete", "namespace", LWS_NAMESPACE, "--wait=true", bound_s=120)


@pytest.fixture(scope="module")
def grouped(operator: Kubectl) -> Iterator[Demo]:
    """Applied before LeaderWorkerSet is there."""
    kubectl = Kubectl(NAMESPACE)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    try:
        kubectl.apply(spec(2))
        yield Demo(kubectl)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", bound_s=300)


@pytest.fixture(scope="module")
def serving(grouped: Demo, controller: None) -> Demo:
    """Two engines of two pods each, and an agent's pod."""
    grouped.kubectl("wait", "--for=condition=Ready", "asc/demo", "--timeout=5m", bound_s=310)
    key = new_key(grouped.kubectl, "default", "--for", "e2e")
    agents.start(grouped.kubectl, key)
    return Demo(grouped.kubectl, key=key)


def uids(demo: Demo) -> dict[str, str]:
    """Of all pods of engines that are not being deleted, by name."""
    pods = [*demo.pods("engine"), *demo.pods("engine-worker")]
    return {
        str(each["metadata"]["name"]): str(each["metadata"]["uid"])
        for each in pods
        if "deletionTimestamp" not in each["metadata"]
    }


def test_without_leader_worker_set_a_condition_says_within_thirty_seconds_what_to_install(grouped: Demo) -> None:
    began = time.monotonic()

    def said() -> bool:
        found = {each["type"]: each for each in grouped.live().get("status", {}).get("conditions", [])}
        return found.get("Ready", {}).get("reason") == "LeaderWorkerSetMissing"

    eventually("the condition names it", said, 60)
    print(f"said after {time.monotonic() - began:.1f} s")


def test_an_engine_is_a_group_and_its_first_pod_alone_is_known(serving: Demo) -> None:
    assert set(uids(serving)) == {"demo-engine-0", "demo-engine-0-1", "demo-engine-1", "demo-engine-1-1"}
    with serving.administrator() as client:
        assert {each.engine_id for each in client.list_engines()} == {"demo-engine-0", "demo-engine-1"}
    status = serving.live()["status"]
    assert (status["engines"]["ready"], status["engines"]["summary"]) == (2, "2/2")
    with Load(serving.kubectl, serving.url, agents=2, max_tokens=20) as load:
        pass
    assert load.calls > 0
    assert load.failures == []


def test_a_worker_that_crashes_replaces_its_group(serving: Demo) -> None:
    """Of vLLM every call of that engine fails; simulated workers compute nothing, so calls say nothing here."""
    before = uids(serving)
    serving.kubectl.crash("demo-engine-0-1", "engine")
    eventually("the group is new", lambda: new(before, uids(serving)) == {"demo-engine-0", "demo-engine-0-1"}, 240)
    serving.until_settled()


def test_a_worker_that_is_evicted_stays_until_its_engine_has_drained(serving: Demo) -> None:
    serving.until_settled()
    before = uids(serving)
    left_early: list[str] = []

    def is_new() -> bool:
        running = running_uids(serving)
        if before["demo-engine-1"] in running and before["demo-engine-1-1"] not in running:
            left_early.append("the worker has ended, its leader runs")
        return new(before, uids(serving)) == {"demo-engine-1", "demo-engine-1-1"}

    with Load(serving.kubectl, serving.url, agents=4, max_tokens=400) as load:
        serving.kubectl("delete", "pod", "demo-engine-1-1", "--wait=false")
        eventually("the group is new", is_new, 240)
    assert load.failures == []
    assert left_early == []


def running_uids(demo: Demo) -> set[str]:
    """Of pods with a container `engine` that runs, those that are being deleted included; all seen at one time."""
    pods = demo.kubectl.find("pods", f"app.kubernetes.io/instance={demo.name}")
    return {
        str(pod["metadata"]["uid"])
        for pod in pods
        for each in pod["status"].get("containerStatuses", [])
        if each["name"] == "engine" and "running" in each["state"]
    }


def new(before: dict[str, str], now: dict[str, str]) -> set[str]:
    """Names of the pods that are others, where all of them are there."""
    return {name for name in now if now[name] != before[name]} if set(before) == set(now) else set()


def test_the_highest_group_leaves_as_a_whole_and_breaks_no_call(serving: Demo) -> None:
    serving.until_settled()
    with Load(serving.kubectl, serving.url, agents=4, max_tokens=200) as load:
        serving.patch({"engine": {"replicas": 1}})
        eventually("one group is left", lambda: set(uids(serving)) == {"demo-engine-0", "demo-engine-0-1"}, 240)
        serving.until_settled()
    assert load.failures == []


@pytest.mark.skipif("E2E_SLOW" not in os.environ, reason="make e2e-vllm-nodes runs it: minutes of real vLLM on CPUs")
@pytest.mark.timeout(900)
def test_real_vllm_computes_over_two_pods(controller: None) -> None:
    with real_vllm("e2e-vllm-nodes", {"nodes": 2, "accelerator": {"tensorParallelSize": 2}}) as real:
        real.until_settled(600)
        assert agents.python(real.kubectl, CALLS, real.url, bound_s=500).split() == ["200", "200"]
        assert "world_size=2 rank=1" in real.kubectl("logs", "demo-engine-0-1", "-c", "engine")
        with real.administrator() as client:
            eventually("both are on one account", lambda: client.get_program("over-pods").calls_completed == 2, 60)
