"""An engine of real vLLM over two nodes (tensor parallelism, gloo): the first has the scheduler, the second computes.

The nodes are processes of one machine that share nothing but the network. The second one's command line is the one that
the operator gives the worker's pod.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from agentserving_cli.local import vllm_env
from agentserving_cli.local.layout import BUILT_IN_CONTEXT, TINY, cpu_dtype, source_path
from agentserving_cli.local.ports import free_ports
from agentserving_operator.manifests.engine_group import LEADER_ADDRESS, WORKER_INDEX, engine_group
from agentserving_operator.manifests.engine_pod import node_arguments
from integration.local_cluster import Cluster
from support.operator_objects import make_cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

SLOTS = 2
# Of both nodes; each would otherwise look for the address by which the machine reaches the internet.
NETWORK = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


def described(model: Path) -> Any:
    """The engine as a user writes it."""
    return make_cluster(
        model={"name": str(model), "loadFormat": "dummy", "maxLength": BUILT_IN_CONTEXT[TINY]},
        engine={
            "nodes": 2, "accelerator": {"count": 0, "tensorParallelSize": 2}, "maxSequences": SLOTS,
            "extraArgs": ["--enforce-eager", "--dtype", cpu_dtype()],
        },
    )  # fmt: skip


def at_port(arguments: list[str], port: int) -> list[str]:
    """With a free port for the nodes to meet."""
    at = arguments.index("--master-port") + 1
    return [*arguments[:at], str(port), *arguments[at + 1 :]]


def start_worker(python: Path, model: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """The worker's pod as a process."""
    templates = engine_group(described(model))["spec"]["leaderWorkerTemplate"]
    (container,) = templates["workerTemplate"]["spec"]["containers"]
    given = {LEADER_ADDRESS: "127.0.0.1", WORKER_INDEX: "1"}
    arguments = at_port([given.get(each, each) for each in container["args"]], port)
    more = {"PYTHONPATH": source_path(), "VLLM_CPU_OMP_THREADS_BIND": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [str(python), *container["command"][1:], *arguments], stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, **NETWORK, **more, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("nodes")
    python = vllm_env.ensure_vllm()
    model = Path(vllm_env.ensure_model(python, TINY))
    (port,) = free_ports(1)
    leader = [*at_port(node_arguments(described(model), "0", "127.0.0.1"), port), "--tensor-parallel-size", "2"]
    flags = ("--engines", "1", "--model", TINY, *(f"--engine-arg={each}" for each in leader))
    worker = start_worker(python, model, port, directory / "worker.log")
    made = None
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in NETWORK.items():
                patch.setenv(name, value)
            made = Cluster(directory / "state", *flags, f"--engine-arg=--max-num-seqs={SLOTS}")
        yield made
    finally:
        if made is not None:
            made.close()
        # vLLM's own processes are in its session.
        os.killpg(worker.pid, 9)
        worker.wait(60)


def complete(cluster: Cluster, program: str, tokens: int) -> None:
    headers = {"x-agentserving-program-id": program}
    with openai.OpenAI(
        base_url=cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0, timeout=400
    ) as agent:
        agent.completions.create(model=TINY, prompt="hello", max_tokens=tokens, extra_body={"ignore_eos": True})


def engine(cluster: Cluster) -> types_pb2.Engine:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        (found,) = stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=60).engines
    return found


def test_the_calls_of_a_program_are_served_by_both_nodes_on_one_account(cluster: Cluster) -> None:
    log = (cluster.directory.parent / "worker.log").read_text()
    # Half of each layer is there, and half of it on the first node.
    assert "world_size=2 rank=1" in log
    for _ in range(2):
        complete(cluster, "over-nodes", 4)
    cluster.wait(lambda: cluster.program("over-nodes").get("calls_completed") == "2")
    row = cluster.program("over-nodes")
    assert row["output_tokens"] == "8"
    assert int(row["attained_service_us"]) > 0


def test_a_call_over_two_nodes_is_preempted_and_goes_on(cluster: Cluster) -> None:
    assert "acknowledged by every engine" in cluster.cli("policy", "set", "atlas")
    thread = threading.Thread(target=complete, args=(cluster, "long", 6000))
    thread.start()
    cluster.wait(lambda: engine(cluster).load.running == 1, 120)
    cluster.cli("pause", "long")
    cluster.wait(lambda: (engine(cluster).load.running, engine(cluster).load.waiting) == (0, 1), 120)
    assert engine(cluster).load.preemptions_proactive >= 1
    # Another program's call passes.
    complete(cluster, "short", 4)
    cluster.wait(lambda: cluster.program("short").get("calls_completed") == "1")
    cluster.cli("resume", "long")
    cluster.wait(lambda: engine(cluster).load.running == 1, 120)
    cluster.cli("cancel", "long")
    thread.join(120)
    assert not thread.is_alive()
    cluster.wait(lambda: engine(cluster).load.running == 0, 120)
