"""A HorizontalPodAutoscaler, as rendered, with the real controller, prometheus-adapter and Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import yaml
from kube import scalers
from kube.client import eventually
from kube.demo import Demo
from kube.scaling import rendered, scales_in, scales_out


@pytest.fixture(scope="module")
def demo(make_demo: Callable[..., Demo], prometheus_url: str) -> Iterator[Demo]:
    """Scaled by the rendered object; prometheus-adapter has the rule that is rendered with it."""
    made = make_demo("e2e-hpa")
    output = rendered(made, "hpa")
    comments = "\n".join(line[2:] for line in output.splitlines() if line.startswith("# "))
    with scalers.installed(scalers.prometheus_adapter(yaml.safe_load(comments.partition(":\n")[2]))):
        made.kubectl("apply", "-f", "-", text=output)
        yield made


def test_a_horizontal_pod_autoscaler_follows_what_programs_need(demo: Demo) -> None:
    def active() -> bool:
        found = demo.kubectl.get("hpa", "demo-engines").get("status", {}).get("conditions", [])
        return any(each["type"] == "ScalingActive" and each["status"] == "True" for each in found)

    eventually("it reads both metrics", active, 240)
    took_s = scales_out(demo)
    print(f"HPA: from the need to the new number of engines {took_s:.1f} s")
    scales_in(demo)
