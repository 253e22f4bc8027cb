"""Real vLLM with speculative decoding: preempted calls lose no token, also where a grammar shapes the answer."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator

import grpc
import openai
import pytest
from agentserving.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    program_service_pb2,
    program_service_pb2_grpc,
    types_pb2,
)
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

# Enough to be in the middle of an answer when the command that pauses its program has started.
TOKENS, LETTERS = 3000, 2000
SPECULATION = '{"method":"ngram","num_speculative_tokens":3,"prompt_lookup_max":4,"prompt_lookup_min":2}'
FLAGS = (
    "--engines", "1", f"--engine-arg=--speculative-config={SPECULATION}", "--engine-arg=--max-model-len=8192",
    "--engine-arg=--max-num-seqs=4",
)  # fmt: skip
PATTERN = f"[a-c]{{{LETTERS}}}"
GRAMMAR: dict[str, object] = {"structured_outputs": {"regex": PATTERN}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("speculation") / "state", *FLAGS)
    # A pause interrupts running calls under policies that preempt.
    assert "acknowledged by every engine" in made.cli("policy", "set", "atlas")
    try:
        yield made
    finally:
        made.close()


def accepted_tokens(cluster: Cluster) -> float:
    """Drafted tokens that the engine has accepted, of its own metrics."""
    url = next(url for pod, url in cluster.addresses["metrics"].items() if "engine" in pod)
    with urllib.request.urlopen(url.replace("/metrics", "/engine/metrics"), timeout=60) as answer:
        text = answer.read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if "num_accepted_tokens_total{" in line)


def load(cluster: Cluster) -> types_pb2.EngineLoad:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        (engine,) = stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=60).engines
    return engine.load


def ask(cluster: Cluster, program: str, more: dict[str, object] | None = None) -> str:
    """The greedy answer to one prompt."""
    headers = {"x-agentserving-program-id": program}
    with openai.OpenAI(
        base_url=cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0, timeout=240
    ) as client:
        answer = client.completions.create(
            model=cluster.addresses["model"], prompt="one two one two one two", max_tokens=TOKENS, temperature=0,
            extra_body={"ignore_eos": True} if more is None else more,
        )  # fmt: skip
    return answer.choices[0].text


def interrupted(cluster: Cluster, program: str, more: dict[str, object] | None = None) -> str:
    """The answer of a call that is preempted in the middle: its program is paused while it runs, and resumed."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(ask(cluster, program, more)))
    thread.start()
    cluster.wait(lambda: load(cluster).running == 1, 120)
    # By RPC: a command takes a second to start, and a grammar's answer is fast.
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        stub.PauseProgram(program_service_pb2.PauseProgramRequest(program_id=program), timeout=60)
    cluster.wait(lambda: (load(cluster).running, load(cluster).waiting) == (0, 1), 120)
    cluster.cli("resume", program)
    thread.join(240)
    assert not thread.is_alive()
    return answers[0]


def test_a_call_that_speculates_is_preempted_and_loses_no_token(cluster: Cluster) -> None:
    whole = ask(cluster, "whole")
    assert accepted_tokens(cluster) > 0, "nothing was ever speculated right: the case shows nothing"
    assert interrupted(cluster, "cut") == whole
    cluster.wait(lambda: cluster.program_or_none("cut").get("calls_completed") == "1", 60)
    row = cluster.program("cut")
    assert (row["output_tokens"], row["preemptions"] != "0") == (str(TOKENS), True)


def test_a_grammar_holds_over_a_preemption_while_tokens_are_speculated(cluster: Cluster) -> None:
    whole = ask(cluster, "whole-letters", GRAMMAR)
    answer = interrupted(cluster, "cut-letters", GRAMMAR)
    assert re.fullmatch(PATTERN, answer)
    assert answer == whole
