"""The whole product on real vLLM, real etcd and real processes, as users run it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import openai
import pytest
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(vllm_cluster: Cluster) -> Cluster:
    return vllm_cluster


def client(cluster: Cluster, program: str) -> openai.OpenAI:
    headers = {"x-agentserving-program-id": program}
    return openai.OpenAI(
        base_url=cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0, timeout=120
    )


def complete(agent: openai.OpenAI, tokens: int, prompt: str = "hello") -> openai.types.Completion:
    return agent.completions.create(model="tiny", prompt=prompt, max_tokens=tokens, extra_body={"ignore_eos": True})


def test_a_program_is_served_and_its_account_moves(cluster: Cluster) -> None:
    with client(cluster, "first") as agent:
        for turn in range(3):
            answer = agent.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi" * turn}],
                max_tokens=5,
                extra_body={"ignore_eos": True},
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 5
    cluster.wait(lambda: cluster.program("first").get("calls_completed") == "3")
    row = cluster.program("first")
    assert int(row["attained_service_us"]) > 0
    assert row["output_tokens"] == "15"
    assert "first" in cluster.cli("ps")


def test_a_stream_and_several_choices_come_through(cluster: Cluster) -> None:
    with client(cluster, "stream") as agent:
        stream = agent.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=6,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    cluster.wait(lambda: cluster.program("stream").get("calls_completed") == "1")
    assert cluster.program("stream")["output_tokens"] == "12"


def test_messages_and_responses_count_as_calls_of_their_program(cluster: Cluster) -> None:
    with client(cluster, "two-dialects") as agent:
        agent.responses.create(model="tiny", input="hi", max_output_tokens=16)
        agent.post(
            "/messages",
            cast_to=object,
            body={"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]},
        )
    cluster.wait(lambda: cluster.program("two-dialects").get("calls_completed") == "2")


def test_an_unknown_model_is_a_404(cluster: Cluster) -> None:
    with client(cluster, "wrong") as agent, pytest.raises(openai.NotFoundError, match="nothing"):
        agent.completions.create(model="nothing", prompt="x")


def test_a_short_program_preempts_a_long_one(cluster: Cluster) -> None:
    """Eight slots per engine: two programs of many long calls, then a newcomer that must not wait for them."""
    assert "acknowledged by every engine" in cluster.cli("policy", "set", "atlas")
    before = _preemptions(cluster)
    done: list[float] = []

    def hog(index: int) -> None:
        with client(cluster, f"hog-{index % 2}") as agent:
            complete(agent, 1500, f"{index}" * 50)
            done.append(time.monotonic())

    threads = [threading.Thread(target=hog, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    cluster.wait(lambda: _loads(cluster, "waiting") > 0 and _loads(cluster, "demotions") > 0)
    with client(cluster, "newcomer") as agent:
        complete(agent, 8)
    newcomer = time.monotonic()
    for thread in threads:
        thread.join()
    assert sum(1 for at in done if at > newcomer) > 12
    assert _preemptions(cluster) > before


def _loads(cluster: Cluster, name: str) -> int:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        overview = stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=10)
    return sum(getattr(engine.load, name) for engine in overview.engines)


def _preemptions(cluster: Cluster) -> int:
    return _loads(cluster, "preemptions_proactive")


def test_a_cancelled_program_answers_its_client_and_leaves_the_engine(cluster: Cluster) -> None:
    chunks: list[object] = []

    def run() -> None:
        with client(cluster, "doomed") as agent:
            chunks.extend(
                agent.completions.create(
                    model="tiny", prompt="x", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
                )
            )

    thread = threading.Thread(target=run)
    thread.start()
    cluster.wait(lambda: "doomed" in cluster.cli("ps") and _loads(cluster, "running") > 0)
    cluster.cli("cancel", "doomed")
    thread.join(30)
    assert not thread.is_alive()
    cluster.wait(lambda: cluster.program("doomed").get("state") == "PROGRAM_STATE_CLOSED")
    cluster.wait(lambda: _loads(cluster, "running") == 0)
    assert int(cluster.program("doomed")["total_service_us"]) > 0


def test_a_client_that_leaves_frees_the_engine(cluster: Cluster) -> None:
    with client(cluster, "leaver") as agent:
        stream = agent.completions.create(
            model="tiny", prompt="x", max_tokens=6000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    cluster.wait(lambda: _loads(cluster, "running") == 0)
    cluster.wait(lambda: cluster.program("leaver").get("calls_completed") == "1")


def test_a_paused_program_waits_until_it_is_resumed(cluster: Cluster) -> None:
    with client(cluster, "paused") as agent:
        complete(agent, 2)
        cluster.cli("pause", "paused")
        done = threading.Event()

        def run() -> None:
            complete(agent, 5)
            done.set()

        thread = threading.Thread(target=run)
        thread.start()
        cluster.wait(lambda: _loads(cluster, "waiting") == 1)
        assert not done.is_set()
        cluster.cli("resume", "paused")
        thread.join(30)
        assert done.is_set()


@pytest.mark.parametrize("victim", ["agentserving_sidecar", "agentserving_controlplane"])
def test_a_killed_component_breaks_no_stream_and_loses_no_service(cluster: Cluster, victim: str) -> None:
    program = f"survivor-{victim[13:17]}"
    counted = 0
    with client(cluster, program) as agent:
        complete(agent, 3)
        stream = agent.completions.create(
            model="tiny", prompt="x", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        for chunk in stream:
            counted += len(chunk.choices)
            if counted == 20:
                cluster.kill(victim)
        finish = chunk.choices[0].finish_reason
    assert finish == "length"
    cluster.wait(lambda: cluster.program_or_none(program).get("calls_completed") == "2", 60)
    assert cluster.program(program)["output_tokens"] == "1003"


def test_a_second_cluster_in_the_same_state_directory_is_refused(cluster: Cluster) -> None:
    argv = [sys.executable, "-m", "agentserving_cli.main", "up", "--state-dir", str(cluster.directory)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert json.loads((Path(cluster.directory) / "cluster.json").read_text())["gateway"].startswith("http://")
