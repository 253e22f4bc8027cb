"""An earlier commit's chart and image, installed in a cluster that runs nothing else; removed at the end."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kube import agents
from kube.demo import Demo, new_key
from kube.kubectl import Kubectl, run
from kube.paths import CHART, ROOT
from kube.versions import OPERATOR_NAMESPACE, RELEASE, Version

NAMESPACE = "e2e-upgrade"
REPOSITORY = "agentserving/agentserving"
CRDS = ("agentservingclusters.agentserving.io", "agentservingtenants.agentserving.io")


@pytest.fixture(scope="session")
def earlier_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the earlier commit, E2E_BASE."""
    assert os.environ.get("KUBECONFIG"), "these cases need a cluster of their own: run `make e2e-upgrade`"
    tree = tmp_path_factory.mktemp("earlier")
    packed = tree / "tree.tar"
    run("git", "-C", str(ROOT), "archive", "--output", str(packed), os.environ["E2E_BASE"], bound_s=60)
    with tarfile.open(packed) as tar:
        tar.extractall(tree, filter="data")
    return tree


@pytest.fixture(scope="session")
def today() -> Version:
    """What e2e/run has built of this checkout."""
    return Version(CHART, agents.IMAGE.removeprefix("docker.io/"))


@pytest.fixture(scope="session")
def earlier(earlier_tree: Path) -> Version:
    """The earlier commit, its image built and loaded into the nodes."""
    image = f"{REPOSITORY}:{os.environ['E2E_BASE'][:12]}"
    name = f"docker.io/{image}"
    tools = ROOT / "e2e/cluster"
    built = {**os.environ, "IMAGE": name, "BUILDER": os.environ.get("BUILDER", str(tools / "image-build"))}
    subprocess.run([earlier_tree / "scripts/images.sh", "agentserving"], env=built, check=True, timeout=900)
    load = os.environ.get("LOAD", str(tools / "image-load")).split()
    subprocess.run([*load, name], check=True, timeout=300)
    return Version(earlier_tree / "charts/agentserving", image)


@pytest.fixture(scope="session")
def demo(earlier: Version, earlier_tree: Path) -> Iterator[Demo]:
    """A cluster of the earlier chart with two control planes and a store, Ready; agents with a key in a pod."""
    run(
        "helm", "install", RELEASE, str(earlier.chart), "-n", OPERATOR_NAMESPACE, "--create-namespace", "--wait",
        "--timeout", "3m", *earlier.values, bound_s=200,
    )  # fmt: skip
    kubectl = Kubectl(NAMESPACE)
    try:
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        kubectl.apply(_spec(earlier_tree))
        kubectl("wait", "--for=condition=Ready", "asc/demo", "--timeout=5m", bound_s=310)
        key = new_key(kubectl, "default", "--for", "e2e")
        agents.start(kubectl, key)
        yield Demo(kubectl, key=key)
    finally:
        _remove(kubectl)


def _spec(tree: Path) -> dict[str, object]:
    """That commit's example, with a store, a standby and small requests."""
    found: dict[str, object] = yaml.safe_load((tree / "examples/cluster-simulator.yaml").read_text())
    small = {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}
    spec = found["spec"]
    assert isinstance(spec, dict)
    spec["store"] = {"type": "Etcd", "etcd": {"size": "1Gi"}}
    spec["controlPlane"] = {"replicas": 2, **small}
    spec["gateway"] = {"replicas": 2, **small}
    return found


def _remove(kubectl: Kubectl) -> None:
    kubectl("delete", "asc", "--all", "--wait=true")
    run("helm", "uninstall", RELEASE, "-n", OPERATOR_NAMESPACE, "--wait")
    run("kubectl", "delete", "crd", *CRDS)
    for each in (NAMESPACE, OPERATOR_NAMESPACE):
        run("kubectl", "delete", "namespace", each, "--wait=true")
