"""The chart of an earlier commit, upgraded to this checkout's and rolled back, while agents call."""

from __future__ import annotations

import json

import pytest
from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo, plugin
from kube.kubectl import run
from kube.versions import OPERATOR_NAMESPACE, RELEASE, Version

# A whole cluster is replaced pod by pod, each with its drain.
ROLLED_BOUND_S = 420.0
PARTS = ("control-plane", "engine", "gateway")


def images(demo: Demo) -> dict[str, set[str]]:
    """Of our own pods, by part: the images that they run, without the registry."""
    found: dict[str, set[str]] = {}
    for part in PARTS:
        containers = [
            container
            for pod in demo.pods(part)
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        ]
        found[part] = {each["image"].removeprefix("docker.io/") for each in containers}
    return found


def until_all_run(demo: Demo, version: Version) -> None:
    """Waits until every pod of the cluster runs that version and the cluster is settled."""

    def rolled() -> bool:
        now = images(demo)
        return all(
            now[part] and {each for each in now[part] if "agentserving/" in each} == {version.image} for part in PARTS
        )

    eventually(f"every pod runs {version.image}", rolled, ROLLED_BOUND_S)
    demo.until_settled()


def calls_counted(demo: Demo) -> int:
    """Ended calls of all programs that the leader knows."""
    shown = plugin("ps", "--all", "-o", "json", "-n", demo.kubectl.namespace)
    return sum(int(each["calls_completed"]) for each in json.loads(shown)["programs"])


@pytest.fixture(scope="module")
def counted_before(demo: Demo) -> int:
    """Calls of the earlier version's accounts."""
    with Load(demo.kubectl, demo.url) as load:
        eventually("accounts have calls", lambda: calls_counted(demo) >= 20, 60)
    assert load.failures == []
    return calls_counted(demo)


def test_an_upgrade_of_the_chart_replaces_every_pod_and_fails_no_call(
    demo: Demo, counted_before: int, today: Version
) -> None:
    with Load(demo.kubectl, demo.url) as load:
        run(
            "helm", "upgrade", RELEASE, str(today.chart), "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "3m",
            *today.values, bound_s=200,
        )  # fmt: skip
        until_all_run(demo, today)
    assert load.failures == []
    assert calls_counted(demo) >= counted_before + load.calls - len(load.unmanaged_s)


def test_a_rollback_brings_the_earlier_version_back_and_fails_no_call(
    demo: Demo, earlier: Version, counted_before: int
) -> None:
    with Load(demo.kubectl, demo.url) as load:
        run("helm", "rollback", RELEASE, "1", "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "3m", bound_s=200)
        until_all_run(demo, earlier)
    assert load.failures == []
    assert calls_counted(demo) >= counted_before + load.calls - len(load.unmanaged_s)
    assert json.loads(run("helm", "status", RELEASE, "-n", OPERATOR_NAMESPACE, "-o", "json"))["version"] == 3
