"""LoRA adapters on real vLLM, through the gateway: listed, routed, cached apart, and loaded while engines serve."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentserving.v1 import admin_service_pb2, admin_service_pb2_grpc, types_pb2
from integration.local_cluster import Cluster
from support.lora_adapter import RANK, make_adapter

pytestmark = [pytest.mark.vllm, pytest.mark.etcd, pytest.mark.timeout(900)]

# A token is a byte; whole blocks of 128 tokens are cached.
PROMPT, BLOCK = "An adapter changes keys and values, so its cache is its own. " * 10, 128


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("sql", "law", "late")):
        make_adapter(directory / name, seed)
    return directory


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, adapters: Path) -> Iterator[Cluster]:
    arguments = [
        "--enable-lora", f"--max-lora-rank={RANK}", "--max-loras=2", "--enable-prompt-tokens-details",
        "--lora-modules", f"sql={adapters / 'sql'}", f"law={adapters / 'law'}",
    ]  # fmt: skip
    flags = ("--engines", "2", "--model", "tiny", *(f"--engine-arg={each}" for each in arguments))
    with pytest.MonkeyPatch.context() as patch:
        # Engines inherit it.
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
        made = Cluster(tmp_path_factory.mktemp("lora") / "state", *flags)
    try:
        yield made
    finally:
        made.close()


def post(url: str, document: object, program: str = "") -> Any:
    headers = {"content-type": "application/json", "x-agentserving-program-id": program or uuid.uuid4().hex}
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)
    with urllib.request.urlopen(request, timeout=240) as answer:
        body = answer.read()
    return json.loads(body) if body[:1] == b"{" else body


def call(cluster: Cluster, model: str, program: str = "", prompt: str = PROMPT) -> Any:
    document = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return post(cluster.addresses["gateway"] + "/completions", document, program)


def cached(answer: Any) -> int:
    return int((answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def listed(cluster: Cluster) -> set[str]:
    with urllib.request.urlopen(cluster.addresses["gateway"] + "/models", timeout=60) as answer:
        return {model["id"] for model in json.load(answer)["data"]}


def engines(cluster: Cluster) -> list[types_pb2.Engine]:
    with grpc.insecure_channel(cluster.addresses["control_plane"]) as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        return list(stub.GetOverview(admin_service_pb2.GetOverviewRequest(), timeout=60).engines)


def served(engine: types_pb2.Engine) -> int:
    """Requests that the engine has completed, as vLLM counts them itself."""
    with urllib.request.urlopen(f"http://{engine.address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total{")))


def has_listed(cluster: Cluster, models: set[str]) -> bool:
    """False too for the first moments, in which the gateway has no answer of an engine yet."""
    try:
        return listed(cluster) == models
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 503:
            raise
        return False


def test_adapters_are_listed_with_the_model_and_answer_differently(cluster: Cluster) -> None:
    cluster.wait(lambda: has_listed(cluster, {"tiny", "sql", "law"}))
    answers = {name: call(cluster, name) for name in ("tiny", "sql", "law")}
    assert {name: answer["model"] for name, answer in answers.items()} == {name: name for name in answers}
    # Two random models may choose the same tokens, but not with the same probabilities.
    chances = {tuple(answer["choices"][0]["logprobs"]["token_logprobs"]) for answer in answers.values()}
    assert len(chances) == 3


def test_the_calls_of_a_program_count_together_whichever_adapters_they_name(cluster: Cluster) -> None:
    for name in ("tiny", "sql", "law", "sql"):
        call(cluster, name, "mixed", f"{name} of a program")
    cluster.wait(lambda: cluster.program("mixed").get("calls_completed") == "4")
    row = cluster.program("mixed")
    assert row["output_tokens"] == "32"
    assert int(row["total_service_us"]) > 0


def test_a_prompt_is_cached_for_the_adapter_that_computed_it_alone(cluster: Cluster) -> None:
    # Calls of one program go where its context is, unless a call runs there that is dearer than so short a context.
    prompt, calls = f"{uuid.uuid4().hex} {PROMPT}", itertools.count(1)

    def cached_by(name: str) -> int:
        found, number = cached(call(cluster, name, "apart", prompt)), str(next(calls))
        cluster.wait(lambda: cluster.program("apart").get("calls_completed") == number)
        return found

    for name in ("tiny", "sql", "law"):
        assert cached_by(name) == 0
        assert cached_by(name) >= len(prompt) - 2 * BLOCK


def is_known(cluster: Cluster, model: str) -> bool:
    """A call finds an engine that has the model: the list may be there before the leader chooses by it."""
    try:
        call(cluster, model)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 404:
            raise
        return False
    return True


def test_an_adapter_that_one_engine_loads_is_listed_and_its_calls_go_there(cluster: Cluster, adapters: Path) -> None:
    first, second = engines(cluster)
    boots = [each.boot_id for each in (first, second)]
    url = f"http://{second.address}/v1/load_lora_adapter"
    post(url, {"lora_name": "late", "lora_path": str(adapters / "late")})
    cluster.wait(lambda: "late" in listed(cluster))
    # The gateway asks engines for the list; who chooses engines hears of it with the sidecar's next look.
    cluster.wait(lambda: any("late" in each.capabilities.models for each in engines(cluster)))
    cluster.wait(lambda: is_known(cluster, "late"))
    before = [served(each) for each in (first, second)]
    for _ in range(6):
        call(cluster, "late")
    assert [served(each) for each in (first, second)] == [before[0], before[1] + 6]
    post(f"http://{second.address}/v1/unload_lora_adapter", {"lora_name": "late"})
    cluster.wait(lambda: "late" not in listed(cluster))
    # Neither has restarted.
    assert [each.boot_id for each in engines(cluster)] == boots
