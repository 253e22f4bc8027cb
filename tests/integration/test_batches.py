"""Files and batches with the real OpenAI SDK, on a whole cluster of one machine with keys."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
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
    # One program, of class batch, of the tenant of the key that has created it.
    cluster.wait(lambda: cluster.program_or_none(batch.id).get("calls_completed") == "20")
    cluster.wait(lambda: cluster.program(batch.id)["outcome"] == "OUTCOME_COMPLETED")
    program = cluster.program(batch.id)
    assert (program["tenant"], program["service_class"]) == ("default", "SERVICE_CLASS_BATCH")


def test_a_killed_service_continues_and_gives_each_line_one_result(cluster: Cluster, client: openai.OpenAI) -> None:
    requests = [request(f"slow-{n}", max_tokens=150, ignore_eos=True) for n in range(120)]
    batch = create(client, requests)

    def finished() -> int:
        try:
            counts = client.batches.retrieve(batch.id).request_counts
        except openai.APIStatusError:
            # The service is being restarted.
            return 0
        return 0 if counts is None else counts.completed

    seen = 0
    for module in ("agentserving_batches", "agentserving_batches", "agentserving_simulator"):
        cluster.wait(lambda seen=seen: finished() > seen, 60)
        seen = finished()
        assert seen < len(requests), "too fast for this test"
        cluster.kill(module)
    cluster.wait(lambda: finished() == len(requests), 120)
    done = ended(cluster, client, batch)
    assert done.status == "completed", done
    assert ids(lines(client, done.output_file_id)) == sorted(each["custom_id"] for each in requests)
    assert done.error_file_id is None


def test_a_cancelled_batch_has_a_line_for_each_request(cluster: Cluster, client: openai.OpenAI) -> None:
    requests = [request(f"ask-{n}", max_tokens=400, ignore_eos=True) for n in range(100)]
    batch = create(client, requests)
    cluster.wait(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 1)  # type: ignore[union-attr]
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(cluster, client, batch)
    assert done.status == "cancelled"
    assert done.cancelling_at is not None
    output, errors = lines(client, done.output_file_id), lines(client, done.error_file_id)
    assert ids(output, errors) == sorted(each["custom_id"] for each in requests)
    assert done.request_counts is not None
    assert len(output) == done.request_counts.completed >= 1
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    # Its calls end in the engines as well.
    cluster.wait(lambda: cluster.program(batch.id).get("running_calls", 0) in (0, "0"))
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_batch_expires_at_the_end_of_its_window(cluster: Cluster, client: openai.OpenAI) -> None:
    requests = [request(f"late-{n}", max_tokens=8000, ignore_eos=True) for n in range(70)]
    done = ended(cluster, client, create(client, requests, window="3s"))
    assert done.status == "expired"
    assert done.expired_at is not None
    output, errors = lines(client, done.output_file_id), lines(client, done.error_file_id)
    assert ids(output, errors) == sorted(each["custom_id"] for each in requests)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}


def test_problems_of_an_input_are_listed_with_their_lines(cluster: Cluster, client: openai.OpenAI) -> None:
    requests = [request("a"), request("a"), {**request("b"), "url": "/v1/embeddings"}, {"custom_id": "c"}]
    done = ended(cluster, client, create(client, requests))
    assert done.status == "failed"
    assert done.errors is not None
    assert [(each.line, each.code) for each in done.errors.data or []] == [
        (2, "duplicate_custom_id"), (3, "mismatched_url"), (4, "invalid_line"),
    ]  # fmt: skip
    done = ended(cluster, client, create(client, [request("a", model="nothing")]))
    assert done.errors is not None
    (problem,) = done.errors.data or []
    assert (problem.code, problem.line) == ("model_not_found", 1)
    assert "served: tiny" in (problem.message or "")


def test_a_tenant_sees_only_its_own(cluster: Cluster, client: openai.OpenAI) -> None:
    key = cluster.cli("key", "create", "others", "--for", "a test").split()[-1]
    batch = ended(cluster, client, create(client, [request("mine")]))
    assert batch.output_file_id is not None
    with client_with(cluster, key) as other:
        assert list(other.files.list()) == list(other.batches.list()) == []
        for attempt in (
            lambda: other.files.retrieve(batch.input_file_id),
            lambda: other.files.content(batch.output_file_id or ""),
            lambda: other.files.delete(batch.input_file_id),
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
        own = ended(cluster, other, create(other, [request("theirs")]))
        assert own.status == "completed"
        assert [each.id for each in other.batches.list()] == [own.id]
    assert own.id not in [each.id for each in client.batches.list(limit=1)]
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(own.id)


def test_a_revoked_key_ends_its_batches_and_files_need_one(cluster: Cluster) -> None:
    key = cluster.cli("key", "create", "leaving", "--for", "a test").split()[-1]
    requests = [request(f"left-{n}", max_tokens=300, ignore_eos=True) for n in range(100)]
    with client_with(cluster, key) as leaving:
        batch = create(leaving, requests)
        cluster.wait(lambda: leaving.batches.retrieve(batch.id).request_counts.completed >= 1)  # type: ignore[union-attr]
    cluster.cli("key", "revoke", key.split("_")[1])
    with client_with(cluster, key) as leaving:

        def is_refused() -> bool:
            try:
                leaving.batches.retrieve(batch.id)
            except openai.AuthenticationError:
                return True
            return False

        cluster.wait(is_refused)
    again = cluster.cli("key", "create", "leaving", "--for", "a test").split()[-1]
    with client_with(cluster, again) as back:
        done = ended(cluster, back, batch)
        errors = lines(back, done.error_file_id)
        assert {line["response"]["status_code"] for line in errors} == {401}
        assert ids(errors, lines(back, done.output_file_id)) == sorted(each["custom_id"] for each in requests)
    with client_with(cluster, "none") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.files.list()


def test_files_are_listed_in_pages_and_deleted(cluster: Cluster, client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="batch") for n in range(5)]
    assert (made[0].filename, made[0].bytes, made[0].purpose) == ("0.jsonl", 3, "batch")
    newest = [each.id for each in client.files.list(limit=2)][:5]
    assert newest == [each.id for each in reversed(made)]
    assert client.files.content(made[0].id).read() == b"{}\n"
    for each in made:
        assert client.files.delete(each.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.files.retrieve(made[0].id)
    with pytest.raises(openai.BadRequestError, match="must be 'batch'"):
        client.files.create(file=("a", b"x"), purpose="assistants")


def test_large_files_pass_the_gateway_in_both_directions_up_to_its_limit(client: openai.OpenAI) -> None:
    content = bytes(range(256)) * (20 << 12)
    file = client.files.create(file=("large", content), purpose="batch")
    assert file.bytes == len(content) == 20 << 20
    assert client.files.content(file.id).read() == content
    client.files.delete(file.id)
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("too large", b"x" * (65 << 20)), purpose="batch")
    assert refused.value.status_code == 413


def test_the_service_reports_itself(cluster: Cluster) -> None:
    token = (cluster.directory / "keys" / "metrics.token").read_text().strip()
    request_ = urllib.request.Request(
        cluster.addresses["metrics"]["batches"], headers={"authorization": f"Bearer {token}"}
    )
    text = urllib.request.urlopen(request_, timeout=10).read().decode()
    assert 'agentserving_batch_lines_total{result="succeeded"}' in text
