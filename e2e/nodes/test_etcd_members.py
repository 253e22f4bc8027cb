"""Three members of etcd: only control planes may be their clients, and one that lost its volume joins again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import agents
from kube.client import eventually
from kube.demo import Demo, new_key, simulator_spec
from kube.kubectl import Kubectl

NAMESPACE = "e2e-etcd"
# HOST: "refused" if etcd ends the connection of a client with the certificate of programs, else "open".
ASK_ETCD = """
import os, ssl, socket, sys
context = ssl.create_default_context(cafile=os.environ["AGENTSERVING_TLS_CA"])
context.load_cert_chain(os.environ["AGENTSERVING_TLS_CERT"], os.environ["AGENTSERVING_TLS_KEY"])
context.set_alpn_protocols(["h2"])
with socket.create_connection((sys.argv[1], 2379), timeout=10) as plain:
    with context.wrap_socket(plain, server_hostname=sys.argv[1]) as found:
        try:
            found.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            print("open" if found.recv(9) else "refused")
        except (ssl.SSLError, ConnectionError):
            print("refused")
"""


@pytest.fixture
def three(operator: Kubectl) -> Iterator[Demo]:
    kubectl = Kubectl(NAMESPACE)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    spec = simulator_spec()
    little = {"requests": {"cpu": "20m", "memory": "64Mi"}}
    spec["spec"]["engine"]["replicas"] = 1
    spec["spec"]["gateway"]["drainSeconds"] = 0
    spec["spec"]["store"] = {"type": "Etcd", "etcd": {"members": 3, "size": "1Gi", "resources": little}}
    try:
        kubectl.apply(spec)
        demo = Demo(kubectl)
        demo.until_settled()
        agents.start(kubectl, new_key(kubectl, "default"))
        yield demo
    finally:
        kubectl("delete", "asc/demo", "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", bound_s=300)


def test_members_admit_control_planes_only_and_one_that_lost_its_volume_joins_again(three: Demo) -> None:
    host = f"demo-etcd-{{}}.demo-etcd-peers.{NAMESPACE}.svc"
    refused = [agents.python(three.kubectl, ASK_ETCD, host.format(member)).strip() for member in range(3)]
    assert refused == ["refused"] * 3
    pod = three.pods("etcd")[-1]
    name = pod["metadata"]["name"]
    # The claim goes when the pod that uses it does.
    three.kubectl("delete", "pvc", f"data-{name}", "--wait=false")
    three.kubectl("delete", "pod", name, "--wait=true")

    def joined() -> bool:
        found = next((each for each in three.pods("etcd") if each["metadata"]["name"] == name), pod)
        conditions = {each["type"]: each["status"] for each in found["status"].get("conditions", [])}
        return found["metadata"]["uid"] != pod["metadata"]["uid"] and conditions.get("Ready") == "True"

    eventually("the member is back", joined, 180)
    assert "lost its volume: removing its former self" in three.kubectl("logs", name, "-c", "join")
    three.until_settled()
