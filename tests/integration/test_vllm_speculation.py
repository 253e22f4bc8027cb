"""Real vLLM with speculative decoding: preempted calls lose no token, also where a grammar shapes the answer."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator

import pytest
from integration.interrupted_calls import Caller, preempting
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
    with preempting(tmp_path_factory.mktemp("speculation") / "state", *FLAGS) as made:
        yield made


def accepted_tokens(cluster: Cluster) -> float:
    """Drafted tokens that the engine has accepted, of its own metrics."""
    url = next(url for pod, url in cluster.addresses["metrics"].items() if "engine" in pod)
    with urllib.request.urlopen(url.replace("/metrics", "/engine/metrics"), timeout=60) as answer:
        text = answer.read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if "num_accepted_tokens_total{" in line)


def caller(cluster: Cluster) -> Caller:
    return Caller(cluster=cluster, prompt="one two one two one two", tokens=TOKENS)


def test_a_call_that_speculates_is_preempted_and_loses_no_token(cluster: Cluster) -> None:
    whole = caller(cluster).ask("whole")
    assert accepted_tokens(cluster) > 0, "nothing was ever speculated right: the case shows nothing"
    assert caller(cluster).interrupted("cut") == whole
    cluster.wait(lambda: cluster.program_or_none("cut").get("calls_completed") == "1", 60)
    row = cluster.program("cut")
    assert (row["output_tokens"], row["preemptions"] != "0") == (str(TOKENS), True)


def test_a_grammar_holds_over_a_preemption_while_tokens_are_speculated(cluster: Cluster) -> None:
    whole = caller(cluster).ask("whole-letters", GRAMMAR)
    answer = caller(cluster).interrupted("cut-letters", GRAMMAR)
    assert re.fullmatch(PATTERN, answer)
    assert answer == whole
