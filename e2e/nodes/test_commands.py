"""The commands for a running cluster: `kubectl agentserving` and `helm test`."""

from __future__ import annotations

import json

import pytest
from kube.demo import Demo
from kube.kubectl import Kubectl, run

pytestmark = pytest.mark.usefixtures("plugin_on_path")


def agentserving(demo: Demo, *words: str) -> str:
    return run("kubectl", "agentserving", *words, "-n", demo.kubectl.namespace)


def test_the_chart_s_test_passes(settled: Demo, operator: Kubectl) -> None:
    output = run("helm", "test", "agentserving", "-n", operator.namespace, "--logs", "--timeout", "2m", bound_s=150)
    assert "passed in" in output


def test_programs_of_a_cluster_are_listed_and_its_policy_is_told(settled: Demo) -> None:
    programs = json.loads(agentserving(settled, "ps", "--all", "-o", "json"))["programs"]
    assert programs
    assert programs[0]["program_id"] in agentserving(settled, "get", programs[0]["program_id"], "-o", "wide")
    assert "engine" in agentserving(settled, "top").lower()
    assert "followed by: demo-engine-0" in agentserving(settled, "policy", "get")


def test_a_healthy_cluster_has_nothing_for_the_doctor(settled: Demo) -> None:
    assert "Ready" in agentserving(settled, "status")
    findings = json.loads(agentserving(settled, "doctor", "-o", "json"))
    assert [each for each in findings if not each["ok"]] == []
    assert {"operator", "control plane", "engines", "policy", "store"} <= {each["what"] for each in findings}
