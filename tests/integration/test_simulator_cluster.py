"""`agentserving up --engine simulator`: the control path without vLLM."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from agentserving_gateway.smoke import SmokeError, smoke
from integration.local_cluster import Cluster

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("simulated") / "state"
    headers = ("--program-headers", "x-run:x-parent-run", "--ignored-program-headers", "x-session-id")
    cluster = Cluster(directory, "--engine", "simulator", "--engines", "2", *headers, auth=True)
    try:
        yield cluster
    finally:
        cluster.close()


def client(cluster: Cluster, program: str) -> openai.OpenAI:
    headers = {"x-agentserving-program-id": program}
    return openai.OpenAI(
        base_url=cluster.addresses["gateway"], api_key=cluster.key, default_headers=headers, max_retries=0, timeout=60
    )


def test_the_account_includes_streams_and_several_choices(cluster: Cluster) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
    with client(cluster, "sim") as agent:
        whole = agent.chat.completions.create(model="tiny", messages=messages, max_tokens=5, n=2)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 10
        chunks = list(agent.chat.completions.create(model="tiny", messages=messages, max_tokens=7, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    cluster.wait(lambda: cluster.program("sim").get("calls_completed") == "2")
    assert cluster.program("sim")["output_tokens"] == "17"
    assert int(cluster.program("sim")["attained_service_us"]) > 0


def test_a_header_of_ones_own_names_the_program_and_its_parent_and_an_ignored_one_does_not(cluster: Cluster) -> None:
    headers = {"X-Run": "part", "x-parent-run": "whole", "x-session-id": "set-by-a-proxy"}
    with client(cluster, "").with_options(default_headers=headers) as agent:
        agent.completions.create(model="tiny", prompt="x", max_tokens=2)
    cluster.wait(lambda: cluster.program("part").get("calls_completed") == "1")
    assert cluster.program("part")["parent_program_id"] == "whole"
    assert not cluster.program_or_none("set-by-a-proxy")


def test_the_smoke_test_of_the_chart_makes_two_calls_and_names_what_does_not_serve(cluster: Cluster) -> None:
    lines = smoke(cluster.addresses["gateway"], cluster.key)
    program = lines[0].split()[-1]
    assert lines[1:3] == ["a call gave 8 tokens", "a stream gave 9 events"]
    cluster.wait(lambda: cluster.program(program).get("calls_completed") == "2")
    gateway = cluster.addresses["gateway"]
    with pytest.raises(SmokeError, match="answered 404"):
        smoke(gateway.removesuffix("/v1") + "/v9", cluster.key)
    with pytest.raises(SmokeError, match=r"answered 401.*no API key was sent"):
        smoke(gateway)
    with pytest.raises(SmokeError, match="does not answer"):
        smoke("http://127.0.0.1:1/v1")


def test_a_policy_is_acknowledged_by_every_engine_and_bad_requests_are_refused(cluster: Cluster) -> None:
    assert "acknowledged by every engine" in cluster.cli("policy", "set", "plas")
    with client(cluster, "bad") as agent:
        with pytest.raises(openai.NotFoundError, match="nothing"):
            agent.completions.create(model="nothing", prompt="x")
        with pytest.raises(openai.BadRequestError, match="max_tokens must be"):
            agent.completions.create(model="tiny", prompt="x", max_tokens=-1)


def test_cancelling_a_program_ends_its_stream(cluster: Cluster) -> None:
    def run() -> None:
        with client(cluster, "doomed") as agent:
            stream = agent.completions.create(
                model="tiny", prompt="x", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
            )
            list(stream)

    thread = threading.Thread(target=run)
    thread.start()
    cluster.wait(lambda: "doomed" in cluster.cli("ps"))
    cluster.cli("cancel", "doomed")
    thread.join(30)
    assert not thread.is_alive()
    cluster.wait(lambda: cluster.program("doomed").get("state") == "PROGRAM_STATE_CLOSED")


def test_a_run_can_be_looked_at_with_its_clients_trace_and_in_a_file(cluster: Cluster, tmp_path: Path) -> None:
    trace_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello " * 100}]
    with client(cluster, "looked-at") as agent:
        for number in ("1", "2"):
            answer = agent.chat.completions.create(
                model="tiny", messages=messages, max_tokens=20, extra_headers={"traceparent": trace_parent}
            )
            # While it counts as running, the other engine is better for so short a context.
            cluster.wait(lambda number=number: cluster.program("looked-at").get("calls_completed") == number)
            messages += [
                {"role": "assistant", "content": answer.choices[0].message.content or ""},
                {"role": "user", "content": "and then?"},
            ]
    (program,) = json.loads(cluster.cli("trace", "looked-at", "-o", "json"))["programs"]
    first, second = (finished["call"] for finished in program["finished"])
    assert (first["prefix_miss"], second["prefix_miss"]) == ("PREFIX_MISS_FIRST", "PREFIX_MISS_NONE")
    assert second["cached_tokens"] == second["common_tokens"] != "0"
    for call in (first, second):
        assert call["trace_parent"] == trace_parent
        assert int(call["gateway_us"]) > 0
        kinds = [phase["kind"] for phase in call["phases"]]
        assert kinds[-2:] == ["PHASE_KIND_PREFILL", "PHASE_KIND_DECODE"]
    shown = cluster.cli("trace", "looked-at", "--out", str(tmp_path / "run.json"))
    assert "1 hit" in shown
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "call" for event in events) == 2
