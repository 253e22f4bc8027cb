"""An AgentServingTenant on a running cluster: its control plane has what the object says, and forgets it with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kube.client import eventually
from kube.demo import Demo
from kube.kubectl import run

pytestmark = pytest.mark.usefixtures("plugin_on_path")

IN_FORCE_BOUND_S = 30.0


def tenant(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingTenant", "metadata": {"name": "research"},
        "spec": {"clusterName": "demo", **spec},
    }  # fmt: skip


def said(demo: Demo) -> dict[str, Any]:
    """What the control plane says about the tenant; empty when it says nothing."""
    listed = run("kubectl", "agentserving", "tenant", "list", "-o", "json", "-n", demo.kubectl.namespace)
    return next((each for each in json.loads(listed)["tenants"] if each["tenant"] == "research"), {})


def test_what_an_object_says_is_in_force_until_it_is_deleted(settled: Demo) -> None:
    kubectl = settled.kubectl
    kubectl.apply(tenant(weight=2, limits={"programs": 200, "callsAtOnce": 40, "tokensPerDay": 2_000_000}))
    kubectl("wait", "--for=condition=Ready", "agentservingtenant/research", f"--timeout={IN_FORCE_BOUND_S:.0f}s")
    found = said(settled)
    # 64-bit numbers are strings in JSON.
    assert (found["weight"], found["max_programs"], found["max_calls"]) == (2, 200, 40)
    assert int(found["tokens_per_day"]) == 2_000_000
    kubectl.patch("ast/research", {"spec": {"weight": 5, "limits": None}})
    eventually("the change is in force", lambda: said(settled)["weight"] == 5, IN_FORCE_BOUND_S)
    assert not int(said(settled)["max_programs"])
    kubectl("delete", "ast/research", "--wait=true")
    eventually("it is forgotten", lambda: not said(settled), IN_FORCE_BOUND_S)
