"""The real KEDA with the rendered ScaledObject: asking control planes itself, and by way of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from kube import agents, prometheus, scalers
from kube.client import eventually
from kube.demo import Demo
from kube.kubectl import Kubectl, run
from kube.scaling import ready, rendered, scales_in, scales_out, wanted

FAILURES = "keda_scaler_detail_errors_total"
# URL: one call; prints its status.
CALL = """
import json, os, sys, urllib.request
body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
head = {"content-type": "application/json", "authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
request = urllib.request.Request(sys.argv[1] + "/chat/completions", json.dumps(body).encode(), head)
print(urllib.request.urlopen(request, timeout=170).status)
"""


@pytest.fixture(scope="module")
def keda() -> Iterator[None]:
    """Installed from its own manifests."""
    with scalers.installed(scalers.keda()):
        yield


@pytest.fixture(scope="module")
def demo(make_demo: Callable[..., Demo], keda: None) -> Iterator[Demo]:
    made = make_demo("e2e-keda", min=0)
    yield made
    # KEDA holds a finalizer on it, and goes before the namespace does.
    made.kubectl("delete", "scaledobject", "--all", "--wait=true")


def apply(demo: Demo, *words: str) -> None:
    """The rendered ScaledObject, once KEDA can read everything in it."""
    demo.kubectl("apply", "-f", "-", text=rendered(demo, "keda", *words))

    def is_ready() -> bool:
        status = demo.kubectl.get("scaledobject", "demo-engines").get("status", {})
        return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))

    eventually("KEDA takes it", is_ready, 120)


def test_without_a_prometheus_engines_come_for_a_burst_and_leave_to_zero_and_back_for_a_held_call(demo: Demo) -> None:
    apply(demo)
    took_s = scales_out(demo)
    print(f"KEDA, control planes asked: from the need to the new number of engines {took_s:.1f} s")
    scales_in(demo)
    eventually("no engine is left", lambda: wanted(demo) == 0 and not demo.pods("engine"), 400)
    began = time.monotonic()
    # The client waits for its engine.
    assert agents.python(demo.kubectl, CALL, demo.url, bound_s=180).split() == ["200"]
    print(f"an engine came for the held call within {time.monotonic() - began:.0f} s")


def failures() -> float:
    """How often a trigger has given KEDA nothing to decide on, by its own count."""
    page = run("kubectl", "get", "--raw", "/api/v1/namespaces/keda/services/keda-operator:metrics/proxy/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(FAILURES + "{"))


def test_by_way_of_prometheus_an_engine_comes_for_a_held_call_and_stays_when_prometheus_knows_nothing(
    demo: Demo, prometheus_url: str
) -> None:
    apply(demo, "--prometheus", prometheus_url)
    eventually("no engine is left", lambda: wanted(demo) == 0 and not demo.pods("engine"), 400)
    began = time.monotonic()
    assert agents.python(demo.kubectl, CALL, demo.url, bound_s=180).split() == ["200"]
    print(f"an engine came for the held call, by way of Prometheus, within {time.monotonic() - began:.0f} s")
    kubectl = Kubectl(prometheus.NAMESPACE)
    # It starts again without targets and without its data, while the call's context still counts.
    kubectl.apply(prometheus.configuration([]))
    kubectl("rollout", "restart", "deployment/prometheus")
    kubectl("rollout", "status", "deployment/prometheus", "--timeout=2m", bound_s=130)
    before = failures()
    # KEDA looks every five seconds and cools down in fifteen.
    eventually("KEDA has looked often enough", lambda: failures() - before >= 8, 240)
    assert ready(demo, 1)
