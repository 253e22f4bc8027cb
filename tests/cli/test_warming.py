"""`kubectl agentserving render warm`: a Job whose download engines find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from agentserving_cli.kube.clusters import RESOURCE, engines_of
from agentserving_cli.kube.main import main
from agentserving_cli.kube.warming import NothingToWarmError, warm_job
from agentserving_operator.manifests.engine_group import engine_group
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from click.testing import CliRunner
from support.kubectl_stand_in import install
from support.operator_objects import make_cluster, only_container, pod_spec, value_after
from support.s3_server import BUCKET, KEYS, s3_server

pytestmark = pytest.mark.timeout(120)
SHARED = {"type": "ExistingClaim", "claimName": "models"}
NOW, NEXT = (f"s3://{BUCKET}/llama/{version}" for version in ("v1", "v2"))


def engines(uri: str = NOW, endpoint: str = "https://minio", **model: Any) -> dict[str, Any]:
    source = {"s3": {"uri": uri, "endpoint": endpoint, "secretName": "bucket"}}
    return engine_statefulset(make_cluster(model={"name": "llama", "source": source, "cache": SHARED, **model}))


def test_engines_of_the_next_version_load_what_the_job_has_downloaded(tmp_path: Path) -> None:
    with s3_server(tmp_path / "moto.log", {"llama/v2/config.json": b"{}"}) as endpoint:
        (container,) = pod_spec(warm_job(engines(endpoint=endpoint), NEXT))["containers"]
        root = value_after(container["args"], "--root")
        # The volume is mounted elsewhere here.
        arguments = [str(tmp_path / "volume") if each == root else each for each in container["args"]]
        command = [sys.executable, *container["command"][1:], *arguments]
        subprocess.run(command, env={**os.environ, **KEYS}, check=True, timeout=60)
        loaded = value_after(only_container(engines(NEXT, endpoint))["args"], "--model")
    assert (tmp_path / "volume" / Path(loaded).relative_to(root) / "config.json").read_bytes() == b"{}"


def test_the_job_is_the_engines_download_with_their_claim_and_rights() -> None:
    live = engines()
    spec = pod_spec(warm_job(live))
    assert spec["containers"] == [each for each in pod_spec(live)["initContainers"] if each["name"] == "model"]
    assert spec["volumes"] == [{"name": "model-cache", "persistentVolumeClaim": {"claimName": "models"}}]
    assert spec["securityContext"] == pod_spec(live)["securityContext"]
    assert warm_job(live)["metadata"]["name"] != warm_job(live, NEXT)["metadata"]["name"]


def test_engines_on_several_nodes_have_the_same_job() -> None:
    source = {"s3": {"uri": NOW, "endpoint": "https://minio", "secretName": "bucket"}}
    model = {"name": "llama", "source": source, "cache": SHARED}
    cluster = make_cluster(model=model, engine={"nodes": 2, "accelerator": {"count": 8}})
    assert warm_job(engine_group(cluster)) == warm_job(engines())
    assert engines_of({"metadata": {"name": "demo"}, "spec": {"engine": {"nodes": 2}}}) == (
        "leaderworkersets.leaderworkerset.x-k8s.io", "demo-engine",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "says"),
    [({"source": {"image": {"reference": "llama:1"}}}, "source.s3 is not set"), ({"cache": {}}, "do not share")],
)
def test_what_a_job_cannot_fill_is_refused_with_the_field(model: dict[str, Any], says: str) -> None:
    with pytest.raises(NothingToWarmError, match=says):
        warm_job(engines(**model))


def test_the_command_prints_the_job_or_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECTL_ANSWERS", str(tmp_path))
    (tmp_path / f"{RESOURCE}.json").write_text(json.dumps({"items": [{"metadata": {"name": "demo"}, "spec": {}}]}))
    (tmp_path / "statefulset.json").write_text(json.dumps(engines()))
    done = CliRunner().invoke(main, ["render", "warm", "--uri", NEXT])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.output) == warm_job(engines(), NEXT)
    (tmp_path / "statefulset.json").write_text(json.dumps(engines(cache={})))
    done = CliRunner().invoke(main, ["render", "warm"])
    assert (done.exit_code, done.output.count("ReadWriteMany")) == (1, 1)
