"""What cases of autoscaling look at: what programs need, and what was decided and done."""

from __future__ import annotations

import time

from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo
from kube.kubectl import run

# Share of an engine from which on another one is needed; an HPA leaves 10 % beyond it alone.
NEEDS_TWO = 0.8 * 1.1


def wanted(demo: Demo) -> int:
    """Engines that the spec asks for: what an autoscaler sets."""
    return int(demo.live()["spec"]["engine"].get("replicas", 1))


def rendered(demo: Demo, *words: str) -> str:
    """Output of `kubectl agentserving render`."""
    return run("kubectl", "agentserving", "render", *words, "-n", demo.kubectl.namespace)


def ready(demo: Demo, count: int) -> bool:
    """Whether so many engines serve, and no other pod is left."""
    return bool(demo.live()["status"]["engines"]["ready"] == count == len(demo.pods("engine")))


def scales_out(demo: Demo) -> float:
    """A burst that needs a second engine. Returns the seconds from the need to the decision; no call fails."""
    with Load(demo.kubectl, demo.url, agents=24, max_tokens=200) as many:
        with demo.administrator() as client:

            def needs_two() -> bool:
                needed = client.get_demand().needed
                return max(needed.context, needed.calls, needed.service) > NEEDS_TWO

            eventually("two engines are needed", needs_two, 180)
        began = time.monotonic()
        eventually("two engines are wanted", lambda: wanted(demo) == 2, 240)
        took_s = time.monotonic() - began
        eventually("both are ready", lambda: ready(demo, 2), 180)
    assert many.failures == []
    return took_s


def scales_in(demo: Demo) -> None:
    """Little work, which goes on while an engine leaves; no call fails."""
    with Load(demo.kubectl, demo.url, agents=1, max_tokens=400) as few:
        eventually("one engine is wanted", lambda: wanted(demo) == 1, 400)
        eventually("one engine is left", lambda: ready(demo, 1), 180)
    assert few.failures == []
