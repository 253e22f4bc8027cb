"""A model's files from an OCI image or from S3: what pods get for it, and that vLLM loads what is there."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.manifests import Manifest, desired
from agentserving_operator.manifests.engine_group import engine_group
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.spec.parsing import SpecError
from support.operator_objects import IMAGES, make_cluster, only_container, pod_spec, value_after

IMAGE = {"reference": "registry.example.com/llama@sha256:" + "0" * 64}
S3 = {"uri": "s3://models/llama/v1"}


def workload(source: dict[str, Any] | None, **spec: Any) -> Manifest:
    model = {"name": "llama", **({} if source is None else {"source": source})}
    return engine_statefulset(make_cluster(model=model, **spec))


def initial(made: Manifest) -> list[Manifest]:
    found: list[Manifest] = pod_spec(made)["initContainers"]
    return found


def download(source: dict[str, Any]) -> Manifest:
    (found,) = [each for each in initial(workload({"s3": source})) if each["name"] == "model"]
    return found


@pytest.mark.parametrize(("path", "loaded"), [({}, "/model-image"), ({"path": "a/b"}, "/model-image/a/b")])
def test_an_image_is_a_volume_that_the_engine_loads_from(path: dict[str, str], loaded: str) -> None:
    made = workload({"image": {**IMAGE, "pullPolicy": "Always", **path}})
    (volume,) = [each for each in pod_spec(made)["volumes"] if "image" in each]
    assert volume["image"] == {**IMAGE, "pullPolicy": "Always"}
    engine = only_container(made)
    (mount,) = [each for each in engine["volumeMounts"] if each["name"] == volume["name"]]
    assert mount == {"name": volume["name"], "mountPath": "/model-image", "readOnly": True}
    assert value_after(engine["args"], "--model") == loaded
    # Clients ask for the model by its name, not by the path.
    assert value_after(engine["args"], "--served-model-name") == "llama"
    assert "model" not in [each["name"] for each in initial(made)]


def test_objects_are_downloaded_to_where_the_engine_loads_from() -> None:
    made = workload({"s3": S3})
    names = [each["name"] for each in initial(made)]
    # The sidecar is started when the model is there.
    assert names.index("model") < names.index("sidecar")
    (container,) = [each for each in initial(made) if each["name"] == "model"]
    assert "restartPolicy" not in container
    assert container["image"] == IMAGES.agentserving
    assert container["command"] == ["python", "-m", "agentserving_operator.model_download"]
    assert value_after(container["args"], "--uri") == "s3://models/llama/v1"
    root = value_after(container["args"], "--root")
    engine = only_container(made)
    assert value_after(engine["args"], "--model").startswith(f"{root}/s3/")
    cache = {"name": "model-cache", "mountPath": root}
    assert cache in engine["volumeMounts"]
    assert container["volumeMounts"] == [cache]


def test_another_uri_or_server_is_another_version_and_a_slash_is_not() -> None:
    def loaded(source: dict[str, Any]) -> str:
        return value_after(only_container(workload({"s3": source}))["args"], "--model")

    there = loaded(S3)
    assert loaded({"uri": "s3://models/llama/v1/"}) == there
    others = [{"uri": "s3://models/llama/v2"}, {**S3, "endpoint": "https://minio"}]
    assert there not in [loaded(each) for each in others]


def test_the_download_has_what_the_spec_says_and_nothing_else() -> None:
    plain = download(S3)
    assert "envFrom" not in plain
    assert not {"--endpoint", "--region"} & set(plain["args"])
    full = download({**S3, "endpoint": "http://minio.storage:9000", "region": "eu-west-1", "secretName": "bucket"})
    assert full["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert value_after(full["args"], "--endpoint") == "http://minio.storage:9000"
    assert value_after(full["args"], "--region") == "eu-west-1"


def test_without_a_source_vllm_loads_by_the_name() -> None:
    made = workload(None)
    assert value_after(only_container(made)["args"], "--model") == "llama"
    assert "model" not in [each["name"] for each in initial(made)]
    assert [each for each in pod_spec(made)["volumes"] if "image" in each] == []


@pytest.mark.parametrize("source", [{}, {"image": IMAGE, "s3": S3}])
def test_there_is_one_source(source: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="exactly one of image and s3 is needed"):
        workload(source)


def test_a_simulated_engine_has_no_source() -> None:
    with pytest.raises(SpecError, match=r"model\.source goes with engine\.type VLLM only"):
        workload({"s3": S3}, engine={"type": "Simulator"})


@pytest.mark.parametrize("source", [{"image": IMAGE}, {"s3": S3}])
def test_each_node_of_an_engine_loads_from_the_same_place(source: dict[str, Any]) -> None:
    model = {"name": "llama", "source": source}
    group = engine_group(make_cluster(model=model, engine={"nodes": 2, "accelerator": {"count": 8}}))
    pods = [group["spec"]["leaderWorkerTemplate"][f"{each}Template"]["spec"] for each in ("leader", "worker")]
    loaded = [value_after(each["containers"][0]["args"], "--model") for each in pods]
    assert loaded[0] == loaded[1] != "llama"
    downloads, images = (
        [[each for each in pod.get(field, []) if each["name"] in ("model", "model-image")] for pod in pods]
        for field in ("initContainers", "volumes")
    )
    assert downloads[0] == downloads[1]
    assert images[0] == images[1]
    assert downloads[0] or images[0]


def test_a_template_gives_the_download_variables_and_resources() -> None:
    template = {
        "spec": {
            "initContainers": [
                {"name": "model", "env": [{"name": "HTTPS_PROXY", "value": "p"}], "resources": {"limits": {"cpu": "8"}}}
            ]
        }
    }
    cluster = make_cluster(model={"name": "llama", "source": {"s3": S3}}, engine={"template": template})
    (made,) = [
        each
        for each in desired(cluster)
        if each["metadata"]["name"] == "demo-engine" and "spec" in each and each["kind"] == "StatefulSet"
    ]
    (container,) = [each for each in initial(made) if each["name"] == "model"]
    assert {"name": "HTTPS_PROXY", "value": "p"} in container["env"]
    assert container["resources"]["limits"]["cpu"] == "8"
