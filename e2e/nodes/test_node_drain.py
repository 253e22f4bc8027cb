"""A node is drained for maintenance, under load, and comes back. Needs a second node: `make e2e` where there is
memory for it, or NODES=2."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from agentserving_gateway.admission import ADMIT_DEADLINE_S
from kube import agents
from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo, new_key, simulator_spec
from kube.kubectl import Kubectl

NAMESPACE = "e2e-drain"
LITTLE: dict[str, Any] = {"requests": {"cpu": "20m", "memory": "64Mi"}}
# Of each part; etcd has one more.
REPLICAS = 2
AGENTS = 4
DRAIN_BOUND_S = 300
MEMBERS = "app.kubernetes.io/component=etcd,app.kubernetes.io/instance=demo"
# CONTROL_PLANE PROGRAMS: the calls in the account of each, in the agents' pod.
COUNTED = """
import agentserving, json, sys
with agentserving.Client(sys.argv[1]) as client:
    print(json.dumps({name: client.get_program(name).calls_completed for name in sys.argv[2:]}))
"""
# What `kubectl drain` says of a pod that a budget protects.
REFUSED = "disruption budget"


@pytest.fixture(scope="module")
def nodes(operator: Kubectl) -> list[str]:
    found = [str(node["metadata"]["name"]) for node in operator.find("nodes")]
    if len(found) < 2:
        pytest.skip("one node: where would its pods go?")
    return found[:2]


def node_of(pod: dict[str, Any]) -> str:
    return str(pod["spec"].get("nodeName", ""))


def leader(demo: Demo) -> dict[str, Any] | None:
    """The pod of the control plane that leads."""
    pod: dict[str, Any]
    for pod in demo.pods("control-plane"):
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:7080/proxy/readyz"
        try:
            if "leading" in demo.kubectl("get", "--raw", path, "--request-timeout=2s"):
                return pod
        except AssertionError:
            continue
    return None


def move_half(demo: Demo) -> None:
    """One pod of each part starts again, on the only node that takes pods now."""
    volume, moved = "data-demo-etcd-2", [demo.pods(part)[-1] for part in ("gateway", "engine", "etcd")]
    demo.kubectl("delete", "pvc", volume, "--wait=false")
    led = leader(demo)
    assert led is not None
    moved += [pod for pod in demo.pods("control-plane") if pod["metadata"]["name"] != led["metadata"]["name"]]
    demo.kubectl("delete", "pod", *(pod["metadata"]["name"] for pod in moved), bound_s=180)
    demo.until_settled(240)


@pytest.fixture(scope="module")
def apart(operator: Kubectl, nodes: list[str]) -> Iterator[Demo]:
    """A cluster on two nodes, as for production: no part has one pod only. Its client is on the first node."""
    home, other = nodes
    spec, kubectl = simulator_spec(), Kubectl(NAMESPACE)
    # All pods fit on the first node, next to those of other cases.
    spec["spec"]["engine"] |= {"resources": LITTLE, "sidecarResources": LITTLE}
    for part in ("engine", "gateway", "controlPlane"):
        spec["spec"][part]["replicas"] = REPLICAS
    # Kubernetes waits for half of the longest grace period of a namespace's pods before it deletes it.
    spec["spec"]["gateway"]["drainSeconds"] = 30
    spec["spec"]["store"] = {"type": "Etcd", "etcd": {"members": REPLICAS + 1, "size": "1Gi", "resources": LITTLE}}
    try:
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, spec)
        demo = Demo(kubectl)
        demo.until_settled(240)
        demo = Demo(kubectl, key=new_key(kubectl, "default"))
        agents.start(kubectl, demo.key)
        kubectl("cordon", home)
        kubectl("uncordon", other)
        move_half(demo)
        kubectl("uncordon", home)
        # The other one takes the lead, and the one that has led starts again at home.
        led = leader(demo)
        if led is not None and node_of(led) == home:
            kubectl("delete", "pod", led["metadata"]["name"])
        eventually("the leader is on the other node", lambda: (now := leader(demo)) and node_of(now) == other, 120)
        demo.until_settled()
        yield demo
    finally:
        kubectl("uncordon", home)
        kubectl("delete", "asc/demo", "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", bound_s=300)
        kubectl("cordon", other)


def drain(node: str, *flags: str, bound_s: int = DRAIN_BOUND_S) -> subprocess.CompletedProcess[str]:
    argv = ["kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={bound_s}s", *flags]
    return subprocess.run(argv, capture_output=True, text=True, timeout=bound_s + 60, check=False)


def degraded(demo: Demo) -> str:
    """What the condition says; empty while nothing is wrong."""
    (found,) = [each for each in demo.live()["status"]["conditions"] if each["type"] == "Degraded"]
    return str(found["message"]) if found["status"] == "True" else ""


def assert_waited_for_the_leader(load: Load) -> None:
    """On a starved node a leader may say nothing for a second; then its calls are served without an account."""
    assert all(took_s >= ADMIT_DEADLINE_S for took_s in load.unmanaged_s)


def assert_counted_once(demo: Demo, load: Load) -> None:
    """The accounts of the load's programs have its calls, each of them once."""

    def counted() -> bool:
        found = json.loads(agents.python(demo.kubectl, COUNTED, demo.control_plane, *load.answered))
        differing = {name: (calls, found[name]) for name, calls in load.answered.items() if found[name] != calls}
        if differing:
            print("(answered, counted):", differing)
        return not differing

    eventually("all calls are in their accounts", counted, 60)


def test_a_drained_node_gives_its_pods_away_and_no_call_fails(apart: Demo, nodes: list[str]) -> None:
    home, other = nodes
    parts = ("gateway", "control-plane", "engine")
    assert all(sorted(map(node_of, apart.pods(part))) == sorted(nodes) for part in parts)
    with Load(apart.kubectl, apart.url, AGENTS) as load:
        began = time.monotonic()
        done = drain(other)
        print(f"drained within {time.monotonic() - began:.0f} s", done.stdout, done.stderr, sep="\n")
        assert done.returncode == 0, done.stderr
        for part in parts:
            eventually(
                f"{part}: all pods are at home",
                lambda part=part: [node_of(pod) for pod in apart.pods(part)] == [home] * REPLICAS,
                120,
            )
        apart.kubectl("uncordon", other)
        apart.until_settled(240)
    assert load.failures == []
    assert_waited_for_the_leader(load)
    assert_counted_once(apart, load)


def test_a_drain_that_would_take_the_majority_of_the_store_is_refused_and_said(apart: Demo, nodes: list[str]) -> None:
    """Two of three members have their volumes on this node: one may go, and cannot start anywhere else. Without its
    volume it can, and the drain goes on."""
    home, _ = nodes
    with Load(apart.kubectl, apart.url, AGENTS) as load:
        done = drain(home, f"--pod-selector={MEMBERS}", bound_s=45)
        assert done.returncode != 0
        assert REFUSED in done.stderr, done.stderr
        said = eventually("it is said", lambda: degraded(apart), 30)
        (waiting,) = [name for pod in apart.pods("etcd") if not node_of(pod) and (name := pod["metadata"]["name"])]
        assert waiting in said
        assert "kubectl uncordon" in said
        apart.kubectl("delete", "pvc", f"data-{waiting}", "--wait=false")
        apart.kubectl("delete", "pod", waiting)
        eventually("it has joined again", lambda: degraded(apart) == "", 120)
        done = drain(home, f"--pod-selector={MEMBERS}")
        assert done.returncode == 0, done.stderr
        apart.kubectl("uncordon", home)
        apart.until_settled(240)
    assert load.failures == []
    assert_waited_for_the_leader(load)
