"""Pods that are killed under load: guarantees hold, and the cluster repairs itself."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kube import agents
from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo
from kube.kubectl import Kubectl

AGENTS = 4


def news_of(demo: Demo, component: str, pod: dict[str, Any]) -> bool:
    """Whether the pod's containers were restarted, or another pod replaced it; and all are ready."""
    pods = demo.pods(component)
    news = [each for each in pods if identity(each) != identity(pod)]
    return bool(news) and all(is_ready(each) for each in pods)


def identity(pod: dict[str, Any]) -> tuple[str, list[str]]:
    """Changes with a restart of any of its main containers."""
    started = [each.get("containerID", "") for each in pod["status"].get("containerStatuses", [])]
    return pod["metadata"]["name"], [pod["metadata"]["uid"], *started]


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether its condition Ready is True."""
    found = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    return found.get("Ready") == "True"


def attained_us(demo: Demo, program_id: str) -> int:
    """Attained service of a program, from the current control plane."""
    with demo.administrator() as client:
        return int(client.get_program(program_id).attained_service_us)


@pytest.mark.parametrize("how", ["crash", "delete"])
def test_a_lost_control_plane_loses_no_account_and_fails_no_call(settled: Demo, how: str) -> None:
    program = f"outlives-{how.replace(' ', '-')}"
    agents.python(settled.kubectl, agents.CALL, settled.control_plane, program)
    before = eventually("the call is in its account", lambda: attained_us(settled, program))
    (pod,) = settled.pods("control-plane")
    with Load(settled.kubectl, settled.url, AGENTS) as load:
        if how == "crash":
            settled.kubectl.crash(pod["metadata"]["name"], "control-plane")
        else:
            settled.kubectl.delete_now(pod["metadata"]["name"])
        began = time.monotonic()
        eventually("there is another one", lambda: news_of(settled, "control-plane", pod), 60)
        print(f"control plane back after {time.monotonic() - began:.1f} s ({how})")
        settled.until_settled()
    assert load.failures == []
    assert attained_us(settled, program) == before


def test_a_crashed_store_loses_no_account_and_fails_no_call(settled: Demo) -> None:
    agents.python(settled.kubectl, agents.CALL, settled.control_plane, "outlives-store")
    before = eventually("the call is in its account", lambda: attained_us(settled, "outlives-store"))
    (pod,) = settled.pods("etcd")
    with Load(settled.kubectl, settled.url, AGENTS) as load:
        settled.kubectl.crash(pod["metadata"]["name"], "etcd")
        eventually("it is back", lambda: news_of(settled, "etcd", pod), 60)
        settled.until_settled()
    assert load.failures == []
    assert attained_us(settled, "outlives-store") == before


def test_a_crashed_engine_breaks_what_it_ran_and_nothing_else(settled: Demo) -> None:
    pod = settled.pods("engine")[-1]
    with Load(settled.kubectl, settled.url, AGENTS) as load:
        settled.kubectl.crash(pod["metadata"]["name"], "engine")
        eventually("it is back", lambda: news_of(settled, "engine", pod), 120)
        settled.until_settled()
    # Each agent has one call at a time, which may have been on that engine.
    assert len(load.failures) <= AGENTS, load.failures


def test_a_deleted_engine_pod_drains_and_fails_no_call(settled: Demo) -> None:
    pod = settled.pods("engine")[-1]
    with Load(settled.kubectl, settled.url, AGENTS) as load:
        settled.kubectl("delete", "pod", pod["metadata"]["name"])
        eventually("it is back", lambda: news_of(settled, "engine", pod), 120)
        settled.until_settled()
    assert load.failures == []


def test_an_operator_killed_in_the_middle_of_a_change_finishes_it(settled: Demo, operator: Kubectl) -> None:
    (pod,) = operator.find("pods", "app.kubernetes.io/name=agentserving-operator")
    with Load(settled.kubectl, settled.url, AGENTS) as load:
        settled.patch({"engine": {"replicas": 1}, "scheduling": {"policy": "plas"}, "gateway": {"replicas": 2}})
        operator.crash(pod["metadata"]["name"], "operator")
        found = settled.until_settled()
    assert load.failures == []
    assert (len(settled.pods("engine")), len(settled.pods("gateway"))) == (1, 2)
    assert found["status"]["policy"]["name"] == "plas"
    settled.patch({"engine": {"replicas": 2}, "scheduling": {"policy": "atlas"}, "gateway": {"replicas": 1}})
    settled.until_settled()
