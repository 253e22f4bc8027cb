"""The batch service of a cluster: turned on, used with OpenAI's SDK, restarted meanwhile, and turned off."""

from __future__ import annotations

import json

import httpx
import openai
from kube.client import eventually
from kube.demo import Demo

LINES = 40
ENDED = ("completed", "failed", "expired", "cancelled")


def request(number: int) -> str:
    """A line of the input."""
    body = {"model": "tiny", "max_tokens": 20, "messages": [{"role": "user", "content": f"number {number}"}]}
    return json.dumps({"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_a_batch_outlives_its_service_and_each_line_is_answered_once(settled: Demo) -> None:
    settled.patch({"batches": {"enabled": True, "size": "1Gi"}})
    found = settled.until_settled(240)
    assert found["spec"]["batches"]["enabled"]
    # Gateways are replaced, and the one before may still drain.
    eventually("the other gateway is gone", lambda: len(settled.pods("gateway")) == 1, 120)
    (pod,) = settled.pods("batches")
    with settled.kubectl.forward("svc/demo-gateway", 80) as gateway, httpx.Client(trust_env=False) as http:
        sdk = openai.OpenAI(base_url=f"http://{gateway}/v1", api_key=settled.key, http_client=http)
        content = "\n".join(map(request, range(LINES))).encode()
        file = sdk.files.create(file=("in.jsonl", content), purpose="batch")
        batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
        settled.kubectl.delete_now(pod["metadata"]["name"])

        def ended() -> openai.types.Batch | None:
            try:
                now = sdk.batches.retrieve(batch)
            except openai.InternalServerError:
                return None  # its pod is replaced
            return now if now.status in ENDED else None

        done = eventually("the batch has ended", ended, 180)
        assert (done.status, done.request_counts.completed) == ("completed", LINES)
        results = [json.loads(line) for line in sdk.files.content(done.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in results] == [f"n{number}" for number in range(LINES)]
        for each in (file.id, done.output_file_id):
            sdk.files.delete(each)
    settled.patch({"batches": None})
    settled.until_settled(240)
    eventually("its pod is gone", lambda: not settled.pods("batches"), 120)
