"""`kubectl agentserving` finds a cluster, reaches its control plane through a port-forward, and says what is wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
import yaml
from agentserving.transport.connection import Tls
from agentserving.transport.server_tls import server_credentials
from agentserving.v1 import program_service_pb2
from agentserving_cli.kube.clusters import RESOURCE, NoClusterError, choose
from agentserving_cli.kube.findings import of_pods
from agentserving_cli.kube.kubectl import Kubectl, KubectlError, said
from agentserving_cli.kube.main import main
from agentserving_controlplane.__main__ import add_services
from agentserving_controlplane.api.gate import Gate
from click.testing import CliRunner, Result
from support.certificate_files import CertificateFiles
from support.kubectl_stand_in import install
from support.processes import running
from support.served_plane import ServedPlane


def cluster(name: str = "demo", **status: Any) -> dict[str, Any]:
    message = {
        "observedGeneration": 2, "url": "http://demo-gateway.x.svc/v1", "engines": {"summary": "0/0"}, "programs": 1,
        "policy": {"name": "plas", "version": 1},
        "conditions": [
            {"type": kind, "status": "True", "reason": "Available", "message": "all of it"}
            for kind in ("Ready", "ControlPlaneReady", "StoreReady", "EnginesReady", "GatewayReady")
        ],
        **status,
    }  # fmt: skip
    metadata = {"name": name, "namespace": "x", "generation": 2}
    return {"metadata": metadata, "spec": {"engine": {"replicas": 0}}, "status": message}


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in's answers lie; it is the only kubectl on PATH."""
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECTL_ANSWERS", str(tmp_path))
    operator = {"metadata": {"name": "o", "namespace": "ops"}, "status": {"readyReplicas": 1}}
    for resource, items in ((RESOURCE, [cluster()]), ("deployments", [operator]), ("pods", [])):
        (tmp_path / f"{resource}.json").write_text(json.dumps({"items": items}))
    return tmp_path


@pytest.fixture
async def served(answers: Path) -> AsyncIterator[ServedPlane]:
    """A real control plane, which ports are forwarded to."""
    async with ServedPlane() as made:
        (answers / "ports").write_text(str(made.port))
        yield made


async def run(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, main, arguments)


async def test_status_says_how_many_engines_the_scaler_wants_and_why(answers: Path) -> None:
    scaled = cluster(autoscaling={"desired": 3, "reason": "Context"})
    (answers / f"{RESOURCE}.json").write_text(json.dumps({"items": [scaled]}))
    assert "engines 0/0 (wanted 3: Context)" in (await run("status")).output


async def test_programs_are_listed_through_a_forwarded_port_that_is_gone_afterwards(
    served: ServedPlane, answers: Path
) -> None:
    await served.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p1", name="agent"))
    done = await run("ps", "-n", "x", "--context", "c")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split()[0] == "p1"
    asked = [json.loads(line) for line in (answers / "asked").read_text().splitlines()]
    assert all({"--namespace=x", "--context=c"} <= set(each) for each in asked)
    assert asked[-1][-2:] == ["svc/demo-control-plane", ":7070"]
    assert not running(os.getpid(), "port-forward")


async def test_a_follower_behind_the_service_leads_to_the_leaders_pod(served: ServedPlane, answers: Path) -> None:
    await served.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p1", name="agent"))
    gate, follower = Gate(), grpc.aio.server()
    gate.leader = "10.1.2.3:7070"
    follower.add_generic_rpc_handlers((gate,))
    port = follower.add_insecure_port("127.0.0.1:0")
    await follower.start()
    pods = [
        {"metadata": {"name": f"demo-control-plane-{name}"}, "status": {"podIP": ip}}
        for name, ip in (("a", "10.1.2.2"), ("b", "10.1.2.3"))
    ]
    (answers / "pods.json").write_text(json.dumps({"items": pods}))
    (answers / "ports-demo-control-plane").write_text(str(port))
    done = await run("ps")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[1].split()[0] == "p1"
    asked = [json.loads(line) for line in (answers / "asked").read_text().splitlines()]
    assert asked[-1][-2:] == ["pod/demo-control-plane-b", ":7070"]
    gate.leader = "10.9.9.9:7070"
    done = await run("ps")
    assert done.exit_code == 1
    assert "10.9.9.9:7070, is no pod of this cluster" in done.output
    await follower.stop(0)


async def test_a_cluster_with_certificates_is_reached_with_the_clients_secret(answers: Path, tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path)
    found = {**cluster(), "spec": {"engine": {"replicas": 0}, "tls": {"issuer": "Operator"}}}
    (answers / f"{RESOURCE}.json").write_text(json.dumps({"items": [found]}))
    secret = {name: path.read_bytes() for name, path in files.paths("client").items()}
    data = {f"{name}.crt": base64.b64encode(secret[key]).decode() for name, key in (("ca", "ca"), ("tls", "cert"))}
    (answers / "secrets.json").write_text(json.dumps({"data": data}))
    async with ServedPlane() as served:
        server = grpc.aio.server()
        add_services(server, served.plane)
        port = server.add_secure_port(
            "127.0.0.1:0", server_credentials(Tls(**files.paths("control-plane")), structlog.get_logger())
        )
        await server.start()
        (answers / "ports").write_text(str(port))
        await served.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p1", name="agent"))
        done = await run("ps")
        assert "Secret demo-admin-tls has no tls.key yet" in done.output
        data["tls.key"] = base64.b64encode(secret["key"]).decode()
        (answers / "secrets.json").write_text(json.dumps({"data": data}))
        done = await run("ps")
        assert done.exit_code == 0, done.output
        assert done.output.splitlines()[1].split()[0] == "p1"
        asked = [json.loads(line) for line in (answers / "asked").read_text().splitlines()]
        assert ["get", "secrets", "demo-admin-tls", "-o", "json"] in asked
        await server.stop(0)


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
async def test_answers_are_data_with_an_output_option(served: ServedPlane, form: str, read: Any) -> None:
    await served.programs.OpenProgram(program_service_pb2.OpenProgramRequest(program_id="p1", name="agent"))
    done = await run("get", "p1", "-o", form)
    assert read(done.output)["program_id"] == "p1"


async def test_wide_shows_every_column_whatever_the_terminal(served: ServedPlane) -> None:
    narrow, wide = await run("ps"), await run("ps", "-o", "wide")
    assert "PREEMPTED" not in narrow.output
    assert "PREEMPTED" in wide.output


async def test_a_refusal_of_the_control_plane_is_one_line(served: ServedPlane) -> None:
    done = await run("get", "unknown")
    assert done.exit_code == 1
    assert "unknown" in done.output
    assert len(done.output.strip().splitlines()) == 1


async def test_a_healthy_cluster_has_nothing_wrong(served: ServedPlane) -> None:
    done = await run("doctor")
    assert done.exit_code == 0, done.output
    assert "BAD" not in done.output


async def test_the_doctor_names_what_is_wrong_and_what_to_do(served: ServedPlane, answers: Path) -> None:
    ill = cluster(observedGeneration=1)
    ill["spec"]["engine"]["replicas"] = 2
    ill["status"]["conditions"][3] = {
        "type": "EnginesReady", "status": "False", "reason": "Unschedulable", "message": "pod demo-engine-0: no GPU",
    }  # fmt: skip
    restarting = {
        "metadata": {"name": "demo-gateway-1"},
        "status": {
            "containerStatuses": [
                {
                    "name": "gateway", "ready": False, "restartCount": 4,
                    "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
                }
            ]
        },
    }  # fmt: skip
    (answers / f"{RESOURCE}.json").write_text(json.dumps({"items": [ill]}))
    (answers / "pods.json").write_text(json.dumps({"items": [restarting]}))
    (answers / "deployments.json").write_text(json.dumps({"items": []}))
    done = await run("doctor", "-o", "json")
    assert done.exit_code == 1
    wrong = {each["what"]: each["message"] for each in json.loads(done.output) if not each["ok"]}
    assert wrong == {
        "operator": "is not installed: helm install agentserving charts/agentserving -n agentserving",
        "status": "is of generation 1, the spec of 2: the operator is behind",
        "EnginesReady": "Unschedulable: pod demo-engine-0: no GPU",
        "pod demo-gateway-1": "container gateway restarted 4 times (OOMKilled, exit code 137): "
        "kubectl logs demo-gateway-1 -c gateway --previous",
        "engines": "0 of 2 are ready",
    }


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "no GPU"}]},
            "has no node (no GPU): kubectl describe pod p",
        ),
        (
            {
                "phase": "Pending", "conditions": [{"type": "Ready", "status": "False", "message": "unready: [a b]"}],
                "containerStatuses": [
                    {"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}},
                    {"name": "b", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}},
                ],
            },
            "container b waits (ErrImagePull: no such image): kubectl describe pod p",
        ),
        (
            {"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "message": "unready: [a]"}]},
            "is not ready (unready: [a]): kubectl describe pod p",
        ),
        ({}, "is not ready (no status yet): kubectl describe pod p"),
    ],
)  # fmt: skip
def test_a_pod_that_is_not_ready_says_why(status: dict[str, Any], message: str) -> None:
    (found,) = of_pods([{"metadata": {"name": "p"}, "status": status}])
    assert (found.ok, found.what, found.message) == (False, "pod p", message)


def test_pods_that_are_ready_or_terminating_are_not_reported() -> None:
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    leaving = {"name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert not list(of_pods([{"metadata": {"name": "p"}, "status": ready}, {"metadata": leaving, "status": {}}]))


async def test_a_policy_that_differs_from_the_spec_is_reported(served: ServedPlane, answers: Path) -> None:
    in_force = json.loads((await run("policy", "get", "-o", "json")).output)["policy"]["policy"]["name"]
    for asked, ok in ((in_force, True), ("gittins", False)):
        of_spec = cluster()
        of_spec["spec"]["scheduling"] = {"policy": asked}
        (answers / f"{RESOURCE}.json").write_text(json.dumps({"items": [of_spec]}))
        done = await run("doctor")
        assert done.exit_code == (0 if ok else 1), done.output
        assert ("policy of the spec" in done.output) is not ok


def test_a_cluster_without_the_crd_is_recognized(answers: Path) -> None:
    (answers / f"{RESOURCE}.json").unlink()
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "the server doesn't have a resource type" in done.output
    assert "install the chart" in done.output


def test_the_status_is_described_in_words(answers: Path) -> None:
    done = CliRunner().invoke(main, ["status"])
    assert done.exit_code == 0
    assert "demo in x: engines 0/0, policy plas v1, 1 programs, http://demo-gateway.x.svc/v1" in done.output
    assert "GatewayReady" in done.output


def test_without_kubectl_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(main, ["ps"])
    assert done.exit_code == 1
    assert "kubectl is not on PATH: install it" in done.output


def test_a_forward_that_fails_says_what_kubectl_said(answers: Path) -> None:
    with pytest.raises(KubectlError, match="ports"), Kubectl().forwarded("svc/x", 1):
        pass


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        ([], "", "no AgentServingCluster in the current namespace: name another with -n"),
        (["b", "a"], "", "2 AgentServingClusters in the current namespace: name one of a, b with --cluster"),
        (["a"], "c", "no AgentServingCluster 'c' in the current namespace; there are a"),
    ],
)
def test_an_ambiguous_cluster_must_be_named(names: list[str], asked: str, message: str) -> None:
    with pytest.raises(NoClusterError) as refused:
        choose([cluster(name) for name in names], asked, "")
    assert message in str(refused.value)


def test_kubectls_error_is_reduced_to_one_line() -> None:
    assert said("warning: x\nError from server (NotFound): pods not found\n") == "(NotFound): pods not found"
    assert said("") == ""
