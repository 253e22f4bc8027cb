"""A data-parallel engine of real vLLM, two schedulers behind one address, is one engine to everybody else."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator

import grpc
import openai
import pytest
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from integration.local_cluster import Cluster
from support.processes import running

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

# Four calls at a time on each of two ranks.
FLAGS = ("--engines", "1", "--model", "tiny", "--engine-arg=--data-parallel-size=2", "--engine-arg=--max-num-seqs=4")
CALLS, TOKENS = 3, 4
# A token is a byte; whole blocks of 128 tokens are cached.
PROMPT = "What a program has said before is in the cache of its rank. " * 10


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("ranks") / "state", *FLAGS)
    try:
        yield made
    finally:
        made.close()


def client(cluster: Cluster, program: str) -> openai.OpenAI:
    headers = {"x-agentserving-program-id": program}
    return openai.OpenAI(
        base_url=cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0, timeout=240
    )


def complete(cluster: Cluster, program: str, tokens: int, prompt: str = "hello", choices: int = 1) -> None:
    with client(cluster, program) as agent:
        agent.completions.create(
            model="tiny", prompt=prompt, max_tokens=tokens, n=choices, extra_body={"ignore_eos": True}
        )


def engine(cluster: Cluster) -> types_pb2.Engine:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        overview = stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=60)
    (found,) = overview.engines
    return found


def served(cluster: Cluster) -> list[int]:
    """HTTP requests' choices that each rank has completed, as vLLM counts them itself."""
    with urllib.request.urlopen(f"http://{engine(cluster).address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return [
        int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(_SUCCESS % rank)))
        for rank in range(2)
    ]


def has_started_again(cluster: Cluster, boot: str) -> bool:
    """False, too, while the machine is too busy with the start to answer."""
    try:
        found = engine(cluster)
    except grpc.RpcError:
        return False
    return found.boot_id not in ("", boot) and found.state == types_pb2.ENGINE_STATE_READY


_SUCCESS = 'vllm:request_success_total{engine="%d",'


def test_the_ranks_are_one_engine_and_programs_are_spread_over_them(cluster: Cluster) -> None:
    cluster.wait(lambda: engine(cluster).capabilities.data_parallel_size == 2)
    cluster.wait(lambda: engine(cluster).capabilities.max_num_seqs == 8)
    programs = [f"spread-{number}" for number in range(4)]
    for _ in range(CALLS):
        for program in programs:
            complete(cluster, program, TOKENS, PROMPT + program)
    # Two programs on each rank, with all of their calls.
    assert served(cluster) == [2 * CALLS, 2 * CALLS]
    for program in programs:
        cluster.wait(lambda program=program: cluster.program(program).get("calls_completed") == str(CALLS))
        row = cluster.program(program)
        assert row["output_tokens"] == str(CALLS * TOKENS)
        # The second and third call found the first one's context: it is on the same rank.
        assert int(row["cached_tokens"]) >= (CALLS - 1) * (len(PROMPT) - 128)


def test_all_choices_of_a_call_run_on_one_rank_and_count_once(cluster: Cluster) -> None:
    before = served(cluster)
    complete(cluster, "choices", 5, choices=3)
    after = served(cluster)
    assert sorted(now - then for now, then in zip(after, before, strict=True)) == [0, 3]
    cluster.wait(lambda: cluster.program("choices").get("calls_completed") == "1")
    assert cluster.program("choices")["output_tokens"] == "15"


def test_programs_are_paused_resumed_and_cancelled_on_each_rank(cluster: Cluster) -> None:
    assert "acknowledged by every engine" in cluster.cli("policy", "set", "atlas")
    programs = ["long-0", "long-1"]
    threads = [threading.Thread(target=complete, args=(cluster, program, 6000)) for program in programs]
    for thread in threads:
        thread.start()
    cluster.wait(lambda: engine(cluster).load.running == 2, 120)
    for program in programs:
        cluster.cli("pause", program)
    cluster.wait(lambda: (engine(cluster).load.running, engine(cluster).load.waiting) == (0, 2), 120)
    assert engine(cluster).load.preemptions_proactive >= 2
    for program in programs:
        cluster.cli("resume", program)
    cluster.wait(lambda: engine(cluster).load.running == 2, 120)
    for program in programs:
        cluster.cli("cancel", program)
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    cluster.wait(lambda: engine(cluster).load.running == 0, 120)


def test_an_engine_that_loses_a_rank_is_lost_and_comes_back_whole(cluster: Cluster) -> None:
    boot = engine(cluster).boot_id
    (victim,) = running(cluster.process.pid, "EngineCore_DP1")
    victim.kill()
    cluster.wait(lambda: has_started_again(cluster, boot), 500)
    assert engine(cluster).capabilities.max_num_seqs == 8
    complete(cluster, "after", TOKENS)
    cluster.wait(lambda: cluster.program("after").get("calls_completed") == "1")
