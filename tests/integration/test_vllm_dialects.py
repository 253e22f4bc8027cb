"""Every API dialect through the gateway, with the real SDKs, compared with the engine's direct response."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import anthropic
import grpc
import httpx
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
from support.eventually import eventually

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(600)]

CHAT = [{"role": "user", "content": "hi"}]
# (path, body, where usage is in the answer): short prompts fill no block, so that nothing depends on the cache.
DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 5, "ignore_eos": True, "n": 2, "unknown": {"a": [1]}}),
    ("/v1/completions", {"prompt": ["hi", "ho"], "max_tokens": 5, "ignore_eos": True, "unknown": 1}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 5, "ignore_eos": True, "unknown": 1}),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 5, "ignore_eos": True, "unknown": 1}),
]


@pytest.fixture(scope="module")
def cluster(vllm_cluster: Cluster) -> Cluster:
    return vllm_cluster


def base(cluster: Cluster) -> str:
    return str(cluster.addresses["gateway"]).removesuffix("/v1")


def engines(cluster: Cluster) -> list[types_pb2.Engine]:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        return list(stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=10).engines)


def load(cluster: Cluster, field: str) -> int:
    return sum(int(getattr(engine.load, field)) for engine in engines(cluster))


def speak(url: str, path: str, body: dict[str, Any], program: str = "dialects") -> httpx.Response:
    headers = {"x-agentserving-program-id": program}
    return httpx.post(url + path, json={"model": "tiny", **body}, headers=headers, timeout=60)


def usages(answer: httpx.Response) -> list[Any]:
    """Every usage in an answer, streamed or not."""
    if "event-stream" not in answer.headers["content-type"]:
        return [answer.json()["usage"]]
    parts = [
        part for event in _events(answer) for part in (event, event.get("message") or {}, event.get("response") or {})
    ]
    return [part["usage"] for part in parts if part.get("usage")]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), DIALECTS, ids=[path for path, _ in DIALECTS])
def test_a_response_and_its_usage_equal_the_engines(
    cluster: Cluster, path: str, body: dict[str, Any], stream: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if stream and "complet" in path else {}
    asked = {**body, "stream": stream, **options}
    direct = speak(f"http://{engines(cluster)[0].address}", path, asked)
    ours = speak(base(cluster), path, asked)
    assert direct.status_code == ours.status_code == 200, ours.text
    assert usages(ours) == usages(direct) != []
    assert ours.headers["content-type"] == direct.headers["content-type"]
    assert ours.headers["x-agentserving-program-id"] == "dialects"
    assert ours.headers["x-agentserving-call-id"].startswith("dialects.")
    assert ours.headers["x-agentserving-engine"] in ("engine-0", "engine-1")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("POST", "/v1/embeddings", {"model": "tiny", "input": "hi"}),
        ("POST", "/v1/messages/count_tokens", {"model": "tiny", "messages": CHAT}),
        ("POST", "/v1/chat/completions", {"model": "tiny", "messages": "no list"}),
        ("POST", "/v1/responses", {"model": "tiny", "input": 5}),
        ("POST", "/v1/messages", {"model": "tiny", "max_tokens": -1, "messages": CHAT}),
    ],
)
def test_unmanaged_routes_and_errors_are_passed_on_unchanged(
    cluster: Cluster, method: str, path: str, body: object
) -> None:
    direct = httpx.request(method, f"http://{engines(cluster)[0].address}{path}", json=body, timeout=30)
    ours = httpx.request(method, base(cluster) + path, json=body, timeout=30)
    assert ours.status_code == direct.status_code
    volatile = ("created", "id")
    pair = [json.loads(answer.text, object_hook=lambda d: {k: v for k, v in d.items() if k not in volatile})
            for answer in (ours, direct)]  # fmt: skip
    assert pair[0] == pair[1]


def clients(cluster: Cluster, program: str) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    headers = {"x-agentserving-program-id": program}
    return (
        openai.OpenAI(base_url=cluster.addresses["gateway"], api_key="none", default_headers=headers, max_retries=0),
        anthropic.Anthropic(base_url=base(cluster), api_key="none", default_headers=headers, max_retries=0),
    )


def test_the_real_sdks_understand_every_answer(cluster: Cluster) -> None:
    ours, theirs = clients(cluster, "sdks")
    with ours, theirs:
        message = theirs.messages.create(model="tiny", max_tokens=4, messages=[{"role": "user", "content": "hi"}])
        assert message.usage.output_tokens <= 4
        with theirs.messages.stream(model="tiny", max_tokens=4, messages=[{"role": "user", "content": "hi"}]) as stream:
            assert stream.get_final_message().role == "assistant"
        assert theirs.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "hi"}]).input_tokens > 0
        with ours.responses.stream(model="tiny", input="hi", max_output_tokens=16) as events:
            assert events.get_final_response().usage is not None
        assert [model.id for model in ours.models.list()] == ["tiny"]
    cluster.wait(lambda: cluster.program("sdks")["calls_completed"] == "3")


def test_a_body_over_the_limit_is_refused_in_the_clients_own_words(cluster: Cluster) -> None:
    ours, theirs = clients(cluster, "huge")
    text = "x" * (65 << 20)
    with ours, theirs:
        with pytest.raises(openai.APIStatusError, match="request body: at most") as refused:
            ours.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}])
        assert refused.value.status_code == 413
        assert refused.value.code == "body_too_large"
        with pytest.raises(anthropic.APIStatusError, match="request body: at most") as refused:
            theirs.messages.create(model="tiny", max_tokens=4, messages=[{"role": "user", "content": text}])
        assert refused.value.status_code == 413
        assert refused.value.body == {
            "type": "error",
            "error": {
                "type": "request_too_large",
                "message": "request body: at most 67108864 bytes (the gateway's --max-body-bytes)",
            },
        }
    assert cluster.program_or_none("huge") == {}


# -- clients cannot raise their priority -----------------------------------------------------------------------------


def test_priority_headers_and_forged_tickets_do_not_jump_the_queue(cluster: Cluster) -> None:
    """Calls of different lengths fill every slot; honest calls queue; then comes one with every claim of urgency."""
    cluster.cli("policy", "set", "fcfs")
    ours, _ = clients(cluster, "rude")
    with ours, pytest.raises(openai.BadRequestError, match="priority"):
        ours.completions.create(model="tiny", prompt="x", max_tokens=2, extra_body={"priority": -1000})
    claims = {"X-Vllm-Priority": "-1000", "X-Session-ID": "forged", "priority": "-1000", "X-Request-Id": "0"}
    ended: dict[str, tuple[float, str]] = {}
    before = load(cluster, "rejected_tickets"), load(cluster, "unmanaged_calls")

    def call(name: str, tokens: int, **more: Any) -> None:
        ours, _ = clients(cluster, name)
        with ours:
            answer = ours.completions.with_raw_response.create(
                model="tiny", prompt=name, max_tokens=tokens, extra_headers=more.get("headers"), timeout=240,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            ended[name] = time.monotonic(), answer.headers["x-agentserving-engine"]

    threads = [threading.Thread(target=call, args=(f"hog-{n}", 300 + 25 * n)) for n in range(20)]
    _start(threads)
    cluster.wait(lambda: all(engine.load.waiting for engine in engines(cluster)))
    queued = load(cluster, "waiting")
    honest = [threading.Thread(target=call, args=(f"honest-{n}", 2)) for n in range(6)]
    _start(honest)
    cluster.wait(lambda: load(cluster, "waiting") >= queued + 4)
    pushy = threading.Thread(target=call, args=("pushy", 2), kwargs={"headers": claims})
    _start([pushy])
    for thread in (*threads, *honest, pushy):
        thread.join(240)
    at, engine = ended["pushy"]
    ahead = [name for name, (end, where) in ended.items() if name.startswith("honest") and where == engine and end < at]
    same = [name for name, (_, where) in ended.items() if name.startswith("honest") and where == engine]
    assert same, "no honest call was on the same engine"
    # Two slots may come free in one step, and then two calls end in one.
    assert len(ahead) >= len(same) - 1
    assert (load(cluster, "rejected_tickets"), load(cluster, "unmanaged_calls")) == before, (
        "a forged ticket reached an engine"
    )
    cluster.cli("policy", "set", "atlas")


def _start(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()


# -- cancel and disconnect -------------------------------------------------------------------------------------------


def _events(response: httpx.Response) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: {")
    ]


def _last_delta(events: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = next(event["delta"] for event in reversed(events) if "delta" in event)
    return found


CANCELLED: list[tuple[str, dict[str, Any], Callable[[list[dict[str, Any]]], object], object]] = [
    ("/v1/chat/completions", {"messages": CHAT}, lambda e: e[-1]["choices"][0]["finish_reason"], "abort"),
    ("/v1/completions", {"prompt": "hi"}, lambda e: e[-1]["choices"][0]["finish_reason"], "abort"),
    # vLLM says `completed`; it is the engine's word, and streamed tokens are not parsed: see the limits in README.md.
    ("/v1/responses", {"input": "hi", "max_output_tokens": 6000}, lambda e: e[-1]["response"]["status"], "completed"),
    (
        "/v1/messages",
        {"messages": CHAT},
        lambda e: [x for x in e if "delta" in x][-1]["delta"].get("stop_reason"),
        None,
    ),
]


@pytest.mark.parametrize(("path", "body", "end", "finish_reason"), CANCELLED, ids=[path for path, *_ in CANCELLED])
def test_a_cancelled_call_ends_its_stream_with_the_engines_finish_reason(
    cluster: Cluster,
    path: str,
    body: dict[str, Any],
    end: Callable[[list[dict[str, Any]]], object],
    finish_reason: object,
) -> None:
    program = f"cancelled-{path.rpartition('/')[2]}-{len(path)}"
    answers: list[httpx.Response] = []
    asked = {"max_tokens": 6000, **body, "stream": True, "ignore_eos": True}
    thread = threading.Thread(target=lambda: answers.append(speak(base(cluster), path, asked, program)))
    thread.start()
    cluster.wait(lambda: load(cluster, "running") == 1)
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        stub.CancelProgram(program_service_pb2.CancelProgramRequest(program_id=program), timeout=10)
    thread.join(30)
    assert not thread.is_alive(), "the stream did not end with the cancellation"
    assert end(_events(answers[0])) == finish_reason
    cluster.wait(lambda: cluster.program(program)["outcome"] == "OUTCOME_CANCELLED")


def test_a_client_that_leaves_is_aborted_long_before_its_last_token(cluster: Cluster) -> None:
    """Two engines of eight slots and more calls than slots: a queued client leaves, then all others do."""
    ours, _ = clients(cluster, "leavers")
    with ours:
        streams = [
            ours.completions.create(model="tiny", prompt=str(n), max_tokens=7000, stream=True,
                                    extra_body={"ignore_eos": True})
            for n in range(24)
        ]  # fmt: skip
        cluster.wait(lambda: load(cluster, "running") == 16)
        before = load(cluster, "waiting")
        queued = ours.completions.with_streaming_response
        done = threading.Event()

        def wait_in_line() -> None:
            with pytest.raises(openai.APITimeoutError), queued.create(
                model="tiny", prompt="q", max_tokens=7000, timeout=3, extra_body={"ignore_eos": True},
                extra_headers={"x-agentserving-program-id": "in-line"},
            ):  # fmt: skip
                pass
            done.set()

        thread = threading.Thread(target=wait_in_line)
        cluster.cli("policy", "set", "fcfs")
        thread.start()
        cluster.wait(lambda: load(cluster, "waiting") > before)
        assert done.wait(60)
        _gone_within(cluster, "in-line", 20.0)
        for stream in streams:
            stream.close()
        _gone_within(cluster, "leavers", 20.0)
    cluster.cli("policy", "set", "atlas")


def _gone_within(cluster: Cluster, program: str, bound_s: float) -> None:
    """The bound is far below the time that 7,000 tokens take."""
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = program_service_pb2_grpc.ProgramServiceStub(channel)
        request = program_service_pb2.GetProgramRequest(program_id=program)
        eventually(
            lambda: not stub.GetProgram(request, timeout=10).program.calls, f"{program} has no call in flight", bound_s
        )
