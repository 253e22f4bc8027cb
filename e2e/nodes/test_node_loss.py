"""A node with an engine is lost without warning. Needs a second node: `make e2e` where there is memory for it, or
NODES=2."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo
from kube.kubectl import conditions, run
from kube.paths import ROOT

AGENTS = 4
NOTICED_BOUND_S = 150


def power(verb: str, node: str) -> None:
    """`kill` or `start`: the machine, not a process on it."""
    if os.environ.get("CLUSTER") == "kind":
        run("docker", verb, node)
    else:
        run(str(ROOT / "e2e/cluster/node"), verb, node.removeprefix("node"))


@pytest.fixture
def spare(settled: Demo) -> Iterator[str]:
    """A node with one engine on it, and nothing else of the demo."""
    home = settled.kubectl.get("pod/agents")["spec"]["nodeName"]
    others = [name for node in settled.kubectl.find("nodes") if (name := node["metadata"]["name"]) != home]
    if not others:
        pytest.skip("one node: what would be left?")
    settled.kubectl("cordon", home)
    settled.kubectl("uncordon", others[-1])
    settled.patch({"engine": {"replicas": 3}})
    settled.until_settled()
    assert [pod["spec"]["nodeName"] for pod in settled.pods("engine")] == [home, home, others[-1]]
    yield others[-1]
    settled.kubectl("uncordon", home)
    settled.patch({"engine": {"replicas": 2}})
    settled.until_settled()
    settled.kubectl("cordon", others[-1])


def test_a_lost_node_takes_the_calls_of_its_engine_and_nothing_else(settled: Demo, spare: str) -> None:
    with Load(settled.kubectl, settled.url, AGENTS) as load:
        power("kill", spare)
        try:
            eventually("it is noticed", lambda: conditions(settled.live())["EnginesReady"] == "False", NOTICED_BOUND_S)
            found = {each["type"]: each["message"] for each in settled.live()["status"]["conditions"]}
            print(found["EnginesReady"])
        finally:
            power("start", spare)
        settled.until_settled(240)
    # Its control plane knows it earlier than Kubernetes, which gives a node 40 s.
    assert "demo-engine-2" in found["EnginesReady"]
    # Each agent has one call at a time, which may have been on that engine.
    assert len(load.failures) <= AGENTS, load.failures
