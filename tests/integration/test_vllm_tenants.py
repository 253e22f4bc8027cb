"""Two tenants on one real vLLM, through the gateway: neither learns from cached tokens what the other has asked."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator

import pytest
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

# A token is a byte. Whole blocks are cached, and a CPU's blocks have 128 tokens.
BLOCK = 128
SECRET = "The launch code of the research department is 7-3-9-1. " * 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("tenants") / "state"
    flags = ("--engines", "1", "--model", "tiny", "--engine-arg=--enable-prompt-tokens-details")
    made = Cluster(directory, *flags, auth=True)
    try:
        yield made
    finally:
        made.close()


def cached_tokens(cluster: Cluster, key: str, prompt: str) -> int:
    """What the engine says of a call: how many of the prompt's tokens it had computed before."""
    # A program of its own: the account of a program is no way to another's cache either.
    headers = {
        "content-type": "application/json", "authorization": f"Bearer {key}",
        "x-agentserving-program-id": uuid.uuid4().hex,
    }  # fmt: skip
    document = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
    request = urllib.request.Request(
        cluster.addresses["gateway"] + "/completions", json.dumps(document).encode(), headers
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=120) as answer:
        usage = json.load(answer)["usage"]
    assert usage["prompt_tokens"] >= len(prompt)
    details = usage.get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def test_a_right_guess_of_another_tenants_prompt_finds_nothing_in_the_cache(cluster: Cluster) -> None:
    research, second_key = (cluster.cli("key", "create", "research").strip() for _ in range(2))
    assert cached_tokens(cluster, research, SECRET) == 0
    # The same tenant profits, with whichever of its keys: the cache works, so that a zero means something.
    for key in (second_key, research):
        assert cached_tokens(cluster, key, SECRET) >= len(SECRET) - 2 * BLOCK
    guesser = cluster.cli("key", "create", "guesser").strip()
    assert cached_tokens(cluster, guesser, SECRET) == 0
    # It finds its own.
    assert cached_tokens(cluster, guesser, SECRET) >= len(SECRET) - 2 * BLOCK
