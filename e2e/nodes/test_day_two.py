"""Changes of a running cluster, under load: no call fails."""

from __future__ import annotations

import time
from typing import Any

from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo

# Until an edited policy is in force in every engine.
POLICY_BOUND_S = 5.0


def running(demo: Demo, component: str) -> dict[str, tuple[str, int]]:
    """(uid, restarts of all its containers) of each pod."""

    def restarts(pod: dict[str, Any]) -> int:
        found = [*pod["status"].get("initContainerStatuses", []), *pod["status"]["containerStatuses"]]
        return sum(each["restartCount"] for each in found)

    return {pod["metadata"]["name"]: (pod["metadata"]["uid"], restarts(pod)) for pod in demo.pods(component)}


def test_an_edited_policy_reaches_every_engine_and_restarts_nothing(settled: Demo) -> None:
    before = running(settled, "engine")
    with settled.administrator() as client:

        def in_force(name: str) -> bool:
            policy = client.get_policy()
            return (
                policy.policy.name == name
                and not policy.pending_engine_ids
                and len(policy.acknowledged_engine_ids) == 2
            )

        for name in ("plas", "atlas"):
            edited = time.monotonic()
            settled.patch({"scheduling": {"policy": name}})
            eventually(f"{name} is in force", lambda name=name: in_force(name), 30)
            took_s = time.monotonic() - edited
            print(f"policy {name} in force after {took_s:.1f} s")
            assert took_s < POLICY_BOUND_S
            found = settled.until_settled(30)
            assert found["status"]["policy"]["name"] == name
            assert found["status"]["policy"]["observedGeneration"] == found["metadata"]["generation"]
    assert running(settled, "engine") == before


def test_an_engine_leaves_under_load_and_no_call_fails(settled: Demo) -> None:
    with Load(settled.kubectl, settled.url) as load:
        settled.kubectl("scale", "asc/demo", "--replicas=1")
        eventually("one engine is left", lambda: len(settled.pods("engine")) == 1, 120)
        settled.until_settled()
    assert load.failures == []
    assert load.calls > 10
    settled.kubectl("scale", "asc/demo", "--replicas=2")
    assert settled.until_settled()["status"]["engines"]["summary"] == "2/2"


def test_engines_and_gateways_are_replaced_under_load_and_no_call_fails(settled: Demo) -> None:
    parts = ("engine", "gateway")
    before = {part: running(settled, part) for part in parts}
    # A value that differs from the current one, however often this runs.
    slots = 100 + settled.live()["spec"]["engine"].get("maxSequences", 0) % 2
    with Load(settled.kubectl, settled.url) as load:
        settled.patch({"engine": {"maxSequences": slots + 1}, "gateway": {"maxBodyBytes": (1 << 20) + slots}})
        settled.until_settled(240)
    assert load.failures == []
    for part in parts:
        uids = {uid for uid, _ in before[part].values()}
        assert not uids & {uid for uid, _ in running(settled, part).values()}, part


def test_a_pod_template_reaches_the_running_process_and_leaves_without_a_trace(settled: Demo) -> None:
    settled.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "company-ca"},
            "data": {"ca.crt": "a certificate"},
        }
    )
    container = {
        "name": "picker",
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}],
        "volumeMounts": [{"name": "company-ca", "mountPath": "/etc/company", "readOnly": True}],
    }
    spec = {"containers": [container], "volumes": [{"name": "company-ca", "configMap": {"name": "company-ca"}}]}
    template = {"metadata": {"annotations": {"example.com/cost-center": "7"}}, "spec": spec}
    with Load(settled.kubectl, settled.url) as load:
        settled.patch({"gateway": {"template": template}})
        settled.until_settled(240)
        # The one before may still drain.
        eventually("the other one is gone", lambda: len(settled.pods("gateway")) == 1, 120)
        (pod,) = settled.pods("gateway")
        assert pod["metadata"]["annotations"]["example.com/cost-center"] == "7"
        ask = "import os; print(os.environ['HTTPS_PROXY'], open('/etc/company/ca.crt').read())"
        said = settled.kubectl("exec", pod["metadata"]["name"], "-c", "picker", "--", "python", "-c", ask)
        assert said.strip() == "http://proxy.example.com:3128 a certificate"
        settled.patch({"gateway": {"template": None}})
        settled.until_settled(240)
        eventually("the other one is gone", lambda: len(settled.pods("gateway")) == 1, 120)
    assert load.failures == []
    (pod,) = settled.pods("gateway")
    assert "company-ca" not in str(pod["spec"])
