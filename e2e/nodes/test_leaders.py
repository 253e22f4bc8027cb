"""Three control planes in pods: one leads, and when it dies another takes over, under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import agents
from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo

# What controlPlane.replicas > 1 has, and what may come on top of it.
LEASE_S, TAKEOVER_S = 5.0, 3.0
# CONTROL_PLANE PROGRAM, in the agents' pod: followers answer with addresses of pods.
ATTAINED = """
import agentserving, sys
with agentserving.Client(sys.argv[1]) as client:
    print(client.get_program(sys.argv[2]).attained_service_us)
"""


@pytest.fixture(scope="module")
def three(demo: Demo) -> Iterator[Demo]:
    """The demo with three control planes."""
    demo.until_settled()
    demo.patch({"controlPlane": {"replicas": 3}})
    demo.until_settled()
    yield demo
    demo.patch({"controlPlane": {"replicas": 1}})
    demo.until_settled()


def leaders(demo: Demo) -> list[str]:
    """Pods that say that they lead."""
    names = [pod["metadata"]["name"] for pod in demo.pods("control-plane")]
    return [name for name in names if "leading" in said_by(demo, name)]


def said_by(demo: Demo, pod: str) -> str:
    """The response to its readiness probe; empty for a pod that is terminating or stopped."""
    path = f"/api/v1/namespaces/{demo.kubectl.namespace}/pods/{pod}:7080/proxy/readyz"
    try:
        return demo.kubectl("get", "--raw", path, "--request-timeout=2s")
    except AssertionError:
        return ""


def ask(demo: Demo, program: str) -> int:
    """Its attained service, as the leader has it."""
    return int(agents.python(demo.kubectl, ATTAINED, demo.control_plane, program))


@pytest.mark.parametrize("how", ["crash", "delete", "pause"])
def test_another_leads_within_a_lease_and_three_seconds_and_no_call_fails(three: Demo, how: str) -> None:
    program, kubectl = f"outlives-leader-{how.replace(' ', '-')}", three.kubectl
    agents.python(kubectl, agents.CALL, three.control_plane, program)
    before = eventually("the call is in its account", lambda: ask(three, program))
    (old,) = leaders(three)
    with Load(kubectl, three.url) as load:
        if how == "crash":
            kubectl.crash(old, "control-plane")
        elif how == "delete":
            kubectl.delete_now(old)
        else:
            kubectl.signal(old, "control-plane", "STOP")
            eventually("another leads", lambda: [name for name in leaders(three) if name != old], 30)
            kubectl.signal(old, "control-plane", "CONT")
        eventually("one leads", lambda: len(leaders(three)) == 1, 60)
        three.until_settled()
    assert load.failures == []
    # Calls that came meanwhile waited for the next leader, and had one in time; for one that is there and says nothing
    # they wait a second, and are served without it.
    assert how == "pause" or load.unmanaged_s == []
    assert load.slowest_s < LEASE_S + TAKEOVER_S
    assert ask(three, program) == before
