"""Files and batches with the real OpenAI SDK, on a whole cluster of one machine with keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from integration.local_cluster import Cluster
from openai.types import Batch

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(180)]

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("batches") / "state"
    cluster = Cluster(directory, "--engine", "simulator", "--engines", "2", auth=True)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with client_with(cluster, cluster.key) as made:
        yield made


def client_with(cluster: Cluster, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=cluster.addresses["gateway"], api_key=key, max_retries=0, timeout=60)


def request(custom_id: str, *, max_tokens: int = 4, **changes: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": custom_id}], "max_tokens": max_tokens}
    return {
        "custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {**body, **changes},
    }  # fmt: skip


def create(client: openai.OpenAI, requests: Sequence[dict[str, Any]], window: str = "24h") -> Batch:
    content = "".join(json.dumps(each) + "\n" for each in requests).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window=window,  # type: ignore[arg-type] # OpenAI knows 24h only
    )


def ended(cluster: Cluster, client: openai.OpenAI, batch: Batch) -> Batch:
    """The batch, once it has ended."""
    cluster.wait(lambda: client.batches.retrieve(batch.id).status in ENDED, 90)
    return client.batches.retrieve(batch.id)


def lines(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


def ids(*results: list[dict[str, Any]]) -> list[str]:
    return sorted(line["custom_id"] for each in results for line in each)


def test_a_batch_from_upload_to_results(cluster: Cluster, client: openai.OpenAI) -> None:
    requests = [request(f"ask-{n}") for n in range(20)]
    bad = request("bad", max_tokens=-1)
    batch = create(client, [*requests, bad])
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", "/v1/chat/completions", "24h")
    done = ended(cluster, client, batch)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 21, "completed": 20, "failed": 1}
    output, errors = lines(client, done.output_file_id), lines(client, done.error_file_id)
    assert ids(output) == sorted(each["custom_id"] for each in requests)
    for line in output:
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["body"]["usage"]["completion_tokens"] == 4
    (refused,) = errors
    assert refused["custom_id"] == "bad"
    assert refused["response"]["status_code"] == 400
    assert "max_tokens must be" in refused["response"]["body"]["error"]["message"]
    # One program, of class batch, of the tenant whose key has created it.
    cluster.wait(lambda: cluster.program_or_none(batch.id).get("calls_completed") == "20")
    program = cluster.program(batch.id)
    assert (program["tenant"], program["service_class"]) == ("default", "SERVICE_CLASS_BATCH")
