"""Parsers, templates, further names and adapters of a model reach vLLM, which knows the flags."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.manifests import Manifest
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_operator.spec.parsing import SpecError
from support.operator_objects import make_cluster, only_container, pod_spec, value_after

ADAPTERS = [{"name": "sql", "source": "org/sql-lora"}, {"name": "law", "source": "/models/law"}]


def engine(**model: Any) -> Manifest:
    return only_container(engine_statefulset(make_cluster(model={"name": "m", **model})))


def test_a_model_has_further_names_after_its_first() -> None:
    arguments = engine(servedName="a", alsoServedAs=["b", "c"])["args"]
    at = arguments.index("--served-model-name")
    assert arguments[at + 1 : at + 5] == ["a", "b", "c", "--host"]


def test_reasoning_is_parsed_where_a_parser_is_named() -> None:
    assert value_after(engine(reasoningParser="qwen3")["args"], "--reasoning-parser") == "qwen3"
    assert "--reasoning-parser" not in engine()["args"]


def test_a_template_is_the_file_that_the_flag_names() -> None:
    cluster = make_cluster(model={"name": "m", "chatTemplate": {"configMapName": "templates", "key": "llama.jinja"}})
    workload = engine_statefulset(cluster)
    vllm = only_container(workload)
    (mount,) = [each for each in vllm["volumeMounts"] if each["name"] == "chat-template"]
    (volume,) = [each for each in pod_spec(workload)["volumes"] if each["name"] == "chat-template"]
    (item,) = volume["configMap"]["items"]
    assert (volume["configMap"]["name"], item["key"]) == ("templates", "llama.jinja")
    assert value_after(vllm["args"], "--chat-template") == f"{mount['mountPath']}/{item['path']}"


def test_adapters_are_loaded_by_name() -> None:
    arguments = engine(loraAdapters=ADAPTERS, maxLoraRank=64)["args"]
    at = arguments.index("--lora-modules")
    assert arguments[at + 1 : at + 3] == ["sql=org/sql-lora", "law=/models/law"]
    assert "--enable-lora" in arguments
    assert value_after(arguments, "--max-lora-rank") == "64"
    assert not {"--enable-lora", "--lora-modules"} & set(engine()["args"])


def test_adapters_have_the_places_that_the_spec_gives_them() -> None:
    places = {"--max-loras", "--max-cpu-loras"}
    assert not places & set(engine(loraAdapters=ADAPTERS)["args"])
    arguments = engine(loraAdapters=ADAPTERS, maxLoras=1, maxCpuLoras=2)["args"]
    assert [value_after(arguments, name) for name in sorted(places)] == ["2", "1"]
    # The list of modules takes whatever follows it.
    assert max(arguments.index(each) for each in places) < arguments.index("--lora-modules")


@pytest.mark.parametrize("flag", ["--data-parallel-size=2", "--data-parallel-size", "-dp"])
def test_the_flag_of_data_parallelism_is_refused_in_favour_of_the_field(flag: str) -> None:
    with pytest.raises(SpecError, match=r"set by engine\.accelerator\.dataParallelSize"):
        make_cluster(engine={"extraArgs": [flag]})


@pytest.mark.parametrize(("by_content", "given"), [(True, False), (False, True)])
def test_grouping_by_content_can_be_switched_off(by_content: bool, given: bool) -> None:
    workload = gateway_deployment(make_cluster(gateway={"groupByContent": by_content}))
    (picker,) = [each for each in pod_spec(workload)["containers"] if each["name"] == "picker"]
    assert ("--group-by-content" in picker["args"]) is given
    if given:
        assert value_after(picker["args"], "--group-by-content") == "false"


def test_envoy_and_the_picker_have_the_same_headers_of_programs() -> None:
    added = [{"name": "x-run", "parent": "x-up"}, {"name": "x-b"}]
    chosen = {"programHeaders": added, "ignoredProgramHeaders": ["session-id"]}
    for gateway, given in ((chosen, ["x-run:x-up,x-b", "session-id"]), ({}, [])):
        containers = pod_spec(gateway_deployment(make_cluster(gateway=gateway)))["containers"]
        assert {each["name"] for each in containers} == {"gateway", "picker"}
        for each in containers:
            flags = [f for f in ("--program-headers", "--ignored-program-headers") if f in each["args"]]
            assert [value_after(each["args"], flag) for flag in flags] == given
