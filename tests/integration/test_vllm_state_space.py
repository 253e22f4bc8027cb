"""Real vLLM with a model of state space layers (Mamba 2) and attention: served and preempted, not retained."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.interrupted_calls import Caller, engine, preempting
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

TOKENS = 1500
# With prefix caching vLLM 0.32 stores states at the ends of blocks, of which its CPU kernels compute the last one
# alone: stock vLLM ends with an IndexError at its first prompt, without our scheduler as well.
FLAGS = (
    "--engines", "1", "--model", "state-space", "--engine-arg=--no-enable-prefix-caching",
    "--engine-arg=--max-model-len=4096", "--engine-arg=--max-num-seqs=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with preempting(tmp_path_factory.mktemp("state-space") / "state", *FLAGS) as made:
        yield made


def test_a_call_of_state_space_layers_is_preempted_and_its_answer_stays_what_it_is(cluster: Cluster) -> None:
    """The state that the layers carry from token to token is computed again from the prompt and the answer so far."""
    caller = Caller(cluster=cluster, prompt="one two three " * 40, tokens=TOKENS)
    whole = caller.ask("whole")
    assert caller.interrupted("cut") == whole
    cluster.wait(lambda: cluster.program_or_none("cut").get("calls_completed") == "1", 60)
    row = cluster.program("cut")
    assert (row["output_tokens"], row["preemptions"] != "0") == (str(TOKENS), True)


def test_the_engine_says_why_contexts_are_not_retained(cluster: Cluster) -> None:
    capabilities = engine(cluster).capabilities
    obstacles = (capabilities.retention_obstacle, capabilities.working_set_obstacle)
    assert obstacles == ("no_prefix_caching", "no_prefix_caching")
