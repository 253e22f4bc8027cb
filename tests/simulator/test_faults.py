"""Injected faults: spelled, drawn by a seed, and met by the official SDKs."""

from __future__ import annotations

import itertools
import time
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from agentserving_simulator.faults import HEADER, InvalidFaultError, draw, read_faults, split_model
from agentserving_simulator.http_front import Conduct
from support.simulated_engine import MODEL, simulated

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def test_faults_are_read_with_their_amounts_and_shares() -> None:
    found = read_faults("latency=1.5, 429=7@0.25,cut@.5,503")
    assert [(each.kind, each.share) for each in found] == [
        ("latency", 1.0), ("429", 0.25), ("cut", 0.5), ("503", 1.0),
    ]  # fmt: skip
    hit = draw(read_faults("latency=1.5,429=7,503,cut=3,latency=1"), 0, 0)
    assert (hit.latency_s, hit.status, hit.retry_after_s, hit.cut_after) == (2.5, 429, 7.0, 3)
    assert read_faults("") == ()


@pytest.mark.parametrize("text", ["429 503", "300", "latency", "latency=9999", "cut=x", "429@1.5", "429@", "boom"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(InvalidFaultError, match=r"latency|share"):
        read_faults(text)


def test_a_share_of_the_requests_is_hit_and_the_same_ones_with_the_same_seed() -> None:
    faults = read_faults("429@0.3,cut@0.5")
    hits = [draw(faults, 1, request) for request in range(2000)]
    assert hits == [draw(faults, 1, request) for request in range(2000)]
    assert hits != [draw(faults, 2, request) for request in range(2000)]
    assert 500 < sum(hit.status == 429 for hit in hits) < 700
    assert 900 < sum(hit.cut_after is not None for hit in hits) < 1100


def test_faults_stand_behind_the_models_name() -> None:
    assert split_model("tiny+429,cut", "tiny") == ("tiny", "429,cut")
    assert split_model("tiny", "tiny") == ("tiny", "")
    assert split_model("other+429", "tiny") == ("other+429", "")
    assert split_model(7, "tiny") == (7, "")


async def test_each_api_refuses_in_its_own_words_with_retry_after() -> None:
    async with simulated(Conduct(faults=read_faults("429=3"))) as served:
        sdk, claude = served.openai(), served.anthropic()
        for call in (
            sdk.chat.completions.create(model=MODEL, messages=MESSAGES),
            sdk.responses.create(model=MODEL, input="hi", stream=True),
            sdk.completions.create(model=MODEL, prompt="hi"),
        ):
            with pytest.raises(openai.RateLimitError, match="injected fault") as limited:
                await call
            assert limited.value.response.headers["retry-after"] == "3"
        with pytest.raises(anthropic.RateLimitError, match="injected fault") as refused:
            await claude.messages.create(model=MODEL, max_tokens=9, messages=MESSAGES)
        assert refused.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index,call-overload]


async def test_a_request_may_ask_for_its_faults_in_a_header_or_behind_the_models_name() -> None:
    async with simulated(Conduct(faults=read_faults("500"))) as served:
        sdk = served.openai()
        with pytest.raises(openai.InternalServerError):
            await sdk.completions.create(model=MODEL, prompt="hi")
        with pytest.raises(openai.RateLimitError):
            await sdk.completions.create(model=MODEL, prompt="hi", extra_headers={HEADER: "429"})
        with pytest.raises(openai.APIStatusError) as refused:
            await sdk.completions.create(model=f"{MODEL}+418", prompt="hi")
        assert refused.value.status_code == 418
        with pytest.raises(openai.BadRequestError, match="'boom' is no fault"):
            await sdk.completions.create(model=f"{MODEL}+boom", prompt="hi")


async def test_a_client_that_retries_gets_through_a_share_of_refusals() -> None:
    seed = next(n for n in itertools.count() if [draw(read_faults("503@0.5"), n, k).status for k in (0, 1)] == [503, 0])
    async with simulated(Conduct(faults=read_faults("503=0@0.5"), fault_seed=seed)) as served:
        retrying = served.openai().with_options(max_retries=1)
        assert (await retrying.completions.create(model=MODEL, prompt="hi", max_tokens=2)).usage is not None


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
async def test_a_cut_stream_breaks_off_without_an_error_event(path: str) -> None:
    async with simulated(Conduct(faults=read_faults("cut=3"))) as served, aiohttp.ClientSession() as session:
        asked = {"model": MODEL, "prompt": "hi", "input": "hi", "messages": MESSAGES, "max_tokens": 50, "stream": True}
        async with session.post(f"{served.url}/v1/{path}", json=asked) as got:
            seen: list[bytes] = []
            with pytest.raises(aiohttp.ClientPayloadError):
                await read_all(got, seen)
        events = b"".join(seen)
        assert events.count(b"delta") + events.count(b'"text":') >= 3
        assert b"error" not in events.replace(b'"error":null', b"")
        assert not served.engine.requests


async def read_all(got: aiohttp.ClientResponse, seen: list[bytes]) -> None:
    while data := await got.content.readany():
        seen.append(data)


async def test_the_sdk_reports_a_cut_stream() -> None:
    async with simulated(Conduct(faults=read_faults("cut=3"))) as served:
        stream = await served.openai().chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIConnectionError):
            _ = [chunk async for chunk in stream]


async def test_a_whole_answer_is_cut_before_it_is_sent_and_a_late_one_is_late() -> None:
    async with simulated() as served:
        sdk = served.openai()
        with pytest.raises(openai.APIConnectionError):
            await sdk.completions.create(model=MODEL, prompt="hi", extra_headers={HEADER: "cut"})
        before = time.monotonic()
        await sdk.completions.create(model=MODEL, prompt="hi", max_tokens=1, extra_headers={HEADER: "latency=0.4"})
        assert time.monotonic() - before >= 0.4
