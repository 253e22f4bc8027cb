"""A cluster with certificates of the operator and without keys, whose engines have certificates, too."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from agentserving.contract.names import engine_name
from agentserving_operator.manifests.common import Port
from agentserving_operator.manifests.tls import ENGINE_SERVED_DIR
from kube import agents
from kube.agents import Load
from kube.client import eventually
from kube.demo import Demo, simulator_spec
from kube.kubectl import Kubectl, run

NAMESPACE = "e2e-tls"
# CONTROL_PLANE: the errors of a client without TLS, and of one without a certificate.
REFUSED = """
import os, sys
import agentserving
from agentserving import Settings, Tls
from pathlib import Path
for tls in (None, Tls(ca=Path(os.environ["AGENTSERVING_TLS_CA"]))):
    try:
        with agentserving.Client(sys.argv[1], settings=Settings(tls=tls, deadline_s=3, attempts=1)) as client:
            print("served", client.get_policy())
    except agentserving.AgentServingError as error:
        print("refused", type(error).__name__)
"""
# ADDRESS NAME: what an engine answers to http, to a client without a certificate, and to one with the cluster's.
AT_AN_ENGINE = """
import os, socket, ssl, sys
host, port = sys.argv[1].rsplit(":", 1)
files = [os.environ[f"AGENTSERVING_TLS_{name}"] for name in ("CA", "CERT", "KEY")]
for shows in (None, False, True):
    try:
        with socket.create_connection((host, int(port)), 10) as plain:
            connection = plain
            if shows is not None:
                context = ssl.create_default_context(cafile=files[0])
                if shows:
                    context.load_cert_chain(*files[1:])
                connection = context.wrap_socket(plain, server_hostname=sys.argv[2])
            connection.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
            print("served" if b" 200 " in connection.recv(100) else "refused")
    except OSError:
        print("refused")
"""


@pytest.fixture(scope="module")
def encrypted(operator: Kubectl) -> Iterator[Demo]:
    kubectl = Kubectl(NAMESPACE)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    spec = simulator_spec()
    spec["spec"]["engine"]["replicas"] = 1
    spec["spec"]["auth"] = {"clients": "None"}
    spec["spec"]["tls"] = {"issuer": "Operator", "engines": True}
    try:
        kubectl.apply(spec)
        demo = Demo(kubectl)
        demo.until_settled()
        agents.start(kubectl, "")
        yield demo
    finally:
        kubectl("delete", "asc/demo", "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=true")


def test_agents_and_clients_with_a_certificate_are_served_and_nobody_else(encrypted: Demo) -> None:
    with Load(encrypted.kubectl, encrypted.url) as load:
        output = agents.python(encrypted.kubectl, agents.CALL, encrypted.control_plane, "with-certificate")
        refused = agents.python(encrypted.kubectl, REFUSED, encrypted.control_plane)
    assert output.split() == ["200", "12"]
    assert [line.split()[0] for line in refused.splitlines()] == ["refused", "refused"]
    assert (load.failures, load.unmanaged_s) == ([], [])


def test_an_engine_serves_nobody_without_a_certificate_of_the_cluster(encrypted: Demo) -> None:
    (pod,) = encrypted.pods("engine")
    address = f"{pod['status']['podIP']}:{Port.ENGINE}"
    answers = agents.python(encrypted.kubectl, AT_AN_ENGINE, address, engine_name(pod["metadata"]["name"]))
    assert answers.split() == ["refused", "refused", "served"]


def test_an_engines_certificate_is_renewed_while_it_serves(encrypted: Demo) -> None:
    kubectl, name = encrypted.kubectl, "demo-engine-identities"
    (pod,) = encrypted.pods("engine")
    file = f"{ENGINE_SERVED_DIR}/tls.crt"

    def served() -> str:
        read = ("python", "-c", f"print(open('{file}').read())")
        return kubectl("exec", pod["metadata"]["name"], "-c", "engine", "--", *read).strip()

    before = served()
    with Load(kubectl, encrypted.url) as load:
        kubectl("delete", "secret", name)
        kubectl("annotate", "asc/demo", "e2e=renewed", "--overwrite")
        # kubelet takes up to two minutes.
        eventually("the engine has another certificate", lambda: served() != before, 240)
        encrypted.until_settled()
    assert load.failures == []
    (same,) = encrypted.pods("engine")
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert [each["restartCount"] for each in same["status"]["containerStatuses"]] == [0]


def test_kubectl_agentserving_finds_the_certificate_by_itself(encrypted: Demo, plugin_on_path: None) -> None:
    output = run("kubectl", "agentserving", "ps", "--all", "-o", "json", "-n", NAMESPACE)
    assert "with-certificate" in {each["program_id"] for each in json.loads(output)["programs"]}


def test_a_certificate_that_is_lost_is_issued_anew_and_no_call_fails(encrypted: Demo) -> None:
    kubectl, name = encrypted.kubectl, "demo-control-plane-tls"
    before = kubectl.get("secret", name)["data"]["tls.crt"]

    def after() -> str:
        return next(
            (each["data"]["tls.crt"] for each in kubectl.find("secrets") if each["metadata"]["name"] == name), ""
        )

    with Load(kubectl, encrypted.url) as load:
        kubectl("delete", "secret", name)
        # Any change causes a visit.
        kubectl("annotate", "asc/demo", "e2e=looked-at", "--overwrite")
        assert eventually("it is there again", after, 90) != before
        encrypted.until_settled()
        kubectl("rollout", "restart", "deploy/demo-control-plane")
        kubectl("rollout", "status", "deploy/demo-control-plane", "--timeout=2m")
        encrypted.until_settled()
    assert load.failures == []
