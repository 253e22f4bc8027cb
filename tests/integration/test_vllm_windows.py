"""Real vLLM with a model that has sliding windows beside full attention: two groups of layers in one KV cache."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import openai
import pytest
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

MODEL, BLOCK = "windowed", 128
# A token is a byte. A context of 3000 tokens has 23 whole blocks for full attention and, of the group with windows, the
# four that a hit needs; a call that computes it has some more. So two programs do not fit next to each other.
POOL, CONTEXT, WINDOW_BLOCKS = 48, 3000, 4
NEXT = "and then? "
FLAGS = (
    "--engines", "1", "--model", MODEL, f"--engine-arg=--num-gpu-blocks-override={POOL}",
    "--engine-arg=--max-model-len=4096", "--engine-arg=--max-num-batched-tokens=512", "--engine-arg=--max-num-seqs=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("windows") / "state", *FLAGS)
    try:
        yield made
    finally:
        made.close()


def engine(cluster: Cluster) -> types_pb2.Engine:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        overview = stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=60)
    (found,) = overview.engines
    return found


def set_retention(cluster: Cluster, file: Path, milli: int) -> None:
    """Programs in the order of their arrival: a later one waits for what is retained for an earlier one."""
    policy = {
        "name": "mine", "accounting": "ACCOUNTING_NONE", "order": "ORDER_PROGRAM_ARRIVAL", "levels": [{}],
        "max_preemptions": 64, "decision_interval_steps": 1, "retention_milli": milli,
    }  # fmt: skip
    file.write_text(json.dumps(policy))
    assert "acknowledged by every engine" in cluster.cli("policy", "set", "-f", str(file))


@dataclass
class Agent:
    """A program of calls, each of which continues the context of the one before."""

    cluster: Cluster
    program: str
    length: int = CONTEXT
    row: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = f"{self.program} ".ljust(self.length, self.program[-1])

    def call(self, tokens: int = 4) -> int:
        """Prompt tokens of the call that were found in the cache."""
        headers = {"x-agentserving-program-id": self.program}
        with openai.OpenAI(
            base_url=self.cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0,
            timeout=240,
        ) as client:  # fmt: skip
            client.completions.create(
                model=MODEL, prompt=self.context, max_tokens=tokens, extra_body={"ignore_eos": True}
            )
        self.context += NEXT
        before, calls = self.row, int(self.row.get("calls_completed", 0)) + 1
        self.cluster.wait(lambda: self.has_completed(calls), 120)
        return int(self.row.get("cached_tokens", 0)) - int(before.get("cached_tokens", 0))

    def has_completed(self, calls: int) -> bool:
        self.row = self.cluster.program_or_none(self.program) or self.row
        return self.row.get("calls_completed") == str(calls)


def started(*calls: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()


def test_contexts_of_windowed_layers_are_found_but_their_working_set_is_not_known(cluster: Cluster) -> None:
    capabilities = engine(cluster).capabilities
    assert (capabilities.retention_obstacle, capabilities.working_set_obstacle) == ("", "sliding_windows")
    agent = Agent(cluster, "alone")
    found = [agent.call() for _ in range(3)]
    # A hit ends with a whole block.
    assert found == [0, CONTEXT // BLOCK * BLOCK, CONTEXT // BLOCK * BLOCK]
    assert (agent.row["output_tokens"], agent.row["prompt_tokens"]) == ("12", str(3 * CONTEXT + 3 * len(NEXT)))


def test_the_context_of_a_program_outlives_a_later_program_while_its_tool_works(
    cluster: Cluster, tmp_path: Path
) -> None:
    set_retention(cluster, tmp_path / "off.json", 0)
    first, later = Agent(cluster, "lost-a"), Agent(cluster, "lost-b")
    first.call()
    later.call()
    # The blocks of the later program are those of the first one.
    assert first.call() == 0

    # As many times as long as it takes to compute the context; a slower machine has longer.
    set_retention(cluster, tmp_path / "on.json", 100_000)
    first, later = Agent(cluster, "kept-a"), Agent(cluster, "kept-b")
    first.call()
    waiting = started(later.call)
    cluster.wait(lambda: engine(cluster).load.behind_kept == 1, 120)
    # Of two groups: with one, there would be as many blocks as the context has.
    assert engine(cluster).load.kept_blocks == CONTEXT // BLOCK + WINDOW_BLOCKS
    assert first.call() == CONTEXT // BLOCK * BLOCK
    cluster.cli("cancel", first.program)
    ended(waiting)
    assert later.row["output_tokens"] == "4"


def test_calls_of_windowed_layers_are_preempted_and_lose_no_token(cluster: Cluster) -> None:
    assert "acknowledged by every engine" in cluster.cli("policy", "set", "atlas")
    agents = [Agent(cluster, f"long-{number}", 200) for number in range(2)]
    before = engine(cluster).load.preemptions_proactive
    threads = started(*(lambda agent=agent: agent.call(2000) for agent in agents))
    cluster.wait(lambda: engine(cluster).load.running == 2, 120)
    for agent in agents:
        cluster.cli("pause", agent.program)
    cluster.wait(lambda: (engine(cluster).load.running, engine(cluster).load.waiting) == (0, 2), 120)
    assert engine(cluster).load.preemptions_proactive - before >= 2
    for agent in agents:
        cluster.cli("resume", agent.program)
    ended(threads)
    for agent in agents:
        assert (agent.row["output_tokens"], agent.row["prompt_tokens"]) == ("2000", "200")
