"""A cluster that lost its store returns to its backup, by the steps of docs/backup.md, while its engines run on."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agentserving
import pytest
from agentserving_cli.kube.restoring import BUMP_REVISIONS
from kube import agents
from kube.client import eventually
from kube.demo import Demo, new_key, plugin, simulator_spec
from kube.kubectl import Kubectl, run

NAMESPACE = "e2e-restore"
OPERATOR = "deploy/agentserving-operator"
# URL PROGRAM: one call; prints its status.
CALL = """
import json, os, sys, urllib.error, urllib.request
body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
head = {"content-type": "application/json", "authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
head["x-agentserving-program-id"] = sys.argv[2]
request = urllib.request.Request(sys.argv[1] + "/chat/completions", json.dumps(body).encode(), head)
try:
    print(urllib.request.urlopen(request, timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture
def stored(operator: Kubectl) -> Iterator[Demo]:
    """One engine, one control plane, one member of etcd; a client with a key."""
    kubectl = Kubectl(NAMESPACE)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    spec = simulator_spec()
    spec["spec"]["engine"]["replicas"] = 1
    spec["spec"]["gateway"]["drainSeconds"] = 0
    try:
        kubectl.apply(spec)
        demo = Demo(kubectl, key="there is one")
        demo.until_settled()
        agents.start(kubectl, new_key(kubectl, "default"))
        yield demo
    finally:
        operator("scale", OPERATOR, "--replicas=1")
        kubectl("delete", "asc/demo", "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", bound_s=300)


def call(demo: Demo, program: str, counted: int) -> None:
    """One call; returns when the program has had so many."""
    eventually("a call is served", lambda: status_of_a_call(demo, program) == "200", 60)
    eventually(f"{counted} calls of {program} are counted", lambda: programs(demo).get(program) == counted, 120)


def status_of_a_call(demo: Demo, program: str) -> str:
    """401 or 503 until the gateway has the restored keys: those of the empty store are the last that it was sent."""
    status = agents.python(demo.kubectl, CALL, demo.url, program).strip()
    assert status in {"200", "401", "503"}, status
    return status


def programs(demo: Demo) -> dict[str, int]:
    """Completed calls by program."""
    found = json.loads(plugin("ps", "--all", "-o", "json", "-n", demo.kubectl.namespace))["programs"]
    return {each["program_id"]: int(each.get("calls_completed", 0)) for each in found}


def epoch(demo: Demo) -> int:
    """Of the leader; 0 while none leads. A restored store names the leader of before until its lease expires."""
    try:
        with demo.administrator() as client:
            return int(client.get_overview().epoch)
    except agentserving.UnavailableError:
        return 0


def save(demo: Demo, directory: Path) -> Path:
    """A snapshot, taken with a control plane's certificate through a forwarded port."""
    data = demo.kubectl.get("secret", "demo-control-plane-tls")["data"]
    for name, text in data.items():
        (directory / name).write_bytes(base64.b64decode(text))
    files = {"cacert": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
    at = [f"--{flag}={directory / name}" for flag, name in files.items()]
    snapshot = directory / "table.db"
    with demo.kubectl.forward("pod/demo-etcd-0", 2379) as address:
        endpoint = f"https://localhost:{address.partition(':')[2]}"
        run("etcdctl", f"--endpoints={endpoint}", *at, "snapshot", "save", str(snapshot))
    return snapshot


def lose_the_store(demo: Demo) -> None:
    """Its volume is deleted; etcd comes back empty."""
    (before,) = demo.pods("etcd")
    demo.kubectl("delete", "pvc", "data-demo-etcd-0", "--wait=false")
    demo.kubectl("delete", "pod", "demo-etcd-0", "--wait=true")

    def back() -> bool:
        found = demo.pods("etcd")
        return bool(found) and found[0]["metadata"]["uid"] != before["metadata"]["uid"] and is_ready(found[0])

    eventually("an empty etcd is there", back, 180)


def is_ready(pod: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def restore(demo: Demo, operator: Kubectl, snapshot: Path) -> None:
    """The steps of docs/backup.md."""
    kubectl = demo.kubectl
    operator("scale", OPERATOR, "--replicas=0")
    operator("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=agentserving-operator", "--timeout=2m")
    kubectl("scale", "statefulset/demo-etcd", "deployment/demo-control-plane", "--replicas=0")
    kubectl("wait", "--for=delete", "pod/demo-etcd-0", "--timeout=2m")
    kubectl("apply", "-f", "-", text=plugin("render", "restore", "-n", NAMESPACE))
    pod = "demo-etcd-restore-0"
    kubectl("wait", "--for=jsonpath={.status.initContainerStatuses[0].state.running}", f"pod/{pod}", "--timeout=2m")
    kubectl("cp", str(snapshot), f"{pod}:/backup/table.db", "-c", "receive")
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{pod}", "--timeout=5m", bound_s=310)
    kubectl("delete", "pod", pod)
    operator("scale", OPERATOR, "--replicas=1")
    # The status is of before until the operator has looked.
    for part in ("etcd", "control-plane"):
        eventually(f"{part} is back", lambda part=part: any(map(is_ready, demo.pods(part))), 180)
    demo.until_settled()


def test_a_lost_store_returns_to_its_backup_with_a_higher_epoch(
    stored: Demo, operator: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(stored, "kept", 1)
    stored.patch({"scheduling": {"policy": "plas"}})
    stored.until_settled()
    plugin("tenant", "set", "research", "--weight", "3", "-n", NAMESPACE)
    snapshot = save(stored, tmp_path)
    # The cluster's own version, which is newer than that of this checkout's tests.
    monkeypatch.setenv("ETCD_BIN", shutil.which("etcd") or "")
    command = str(Path(sys.executable).with_name("agentserving"))
    assert f"/{NAMESPACE}/demo" in run(command, "backup", "check", str(snapshot))
    # Another leader after the snapshot: its epoch must not come again.
    (leader,) = stored.pods("control-plane")
    stored.kubectl("delete", "pod", leader["metadata"]["name"])
    stored.until_settled()
    call(stored, "later", 1)
    before, engines = epoch(stored), [each["metadata"]["uid"] for each in stored.pods("engine")]
    lose_the_store(stored)
    log = ("logs", "deployment/demo-control-plane", "--tail=200")
    eventually("it is said", lambda: "the store has gone back" in stored.kubectl(*log), 180)
    restore(stored, operator, snapshot)
    now = eventually("a control plane leads", lambda: epoch(stored), 120)
    assert now > max(before, BUMP_REVISIONS)
    assert programs(stored) == {"kept": 1}
    # The key is the one of before; the engine is, too, and accepts the new leader.
    call(stored, "kept", 2)
    assert [each["metadata"]["uid"] for each in stored.pods("engine")] == engines
    assert json.loads(plugin("policy", "get", "-o", "json", "-n", NAMESPACE))["policy"]["policy"]["name"] == "plas"
    tenants = json.loads(plugin("tenant", "list", "-o", "json", "-n", NAMESPACE))["tenants"]
    assert {each["tenant"]: each["weight"] for each in tenants}["research"] == 3
