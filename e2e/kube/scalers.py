"""KEDA and prometheus-adapter, from the manifests in their Go modules. One of them may serve external metrics."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kube.kubectl import run
from kube.paths import ROOT
from kube.prometheus import NAMESPACE as MONITORING
from kube.prometheus import URL, setting

_ADAPTER = "prometheus-adapter"
_API = "v1beta1.external.metrics.k8s.io"
# Manifests of the adapter that the external-metrics API needs; the others serve CPU and memory.
_FILES = ("service-account", "cluster-role", "cluster-role-binding", "cluster-role-binding-delegator",
          "role-binding-auth-reader", "deployment", "service")  # fmt: skip


def _module(name: str, version: str) -> Path:
    argv = ["go", "mod", "download", "-json", f"{name}@v{version}"]
    done = subprocess.run(argv, cwd=ROOT / "e2e/gaie", check=True, capture_output=True, text=True)
    return Path(json.loads(done.stdout)["Dir"])


def keda() -> list[dict[str, Any]]:
    """KEDA's own minimal installation, without its webhooks; its images are there already."""
    text = run("kubectl", "kustomize", str(_module("github.com/kedacore/keda/v2", setting("KEDA")) / "config/minimal"))
    images = {"keda-operator": setting("KEDA_IMAGE"), "keda-metrics-apiserver": setting("KEDA_ADAPTER_IMAGE")}
    return [_with_images(each, images) for each in yaml.safe_load_all(text) if each]


def prometheus_adapter(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """prometheus-adapter with these external rules, as its Helm chart's `rules.external` sets them up."""
    at = _module(f"sigs.k8s.io/{_ADAPTER}", setting("PROMETHEUS_ADAPTER")) / "deploy/manifests"
    images = {_ADAPTER: setting("PROMETHEUS_ADAPTER_IMAGE")}
    found = [_with_images(yaml.safe_load((at / f"{name}.yaml").read_text()), images) for name in _FILES]
    (deployment,) = (each for each in found if each["kind"] == "Deployment")
    deployment["spec"]["replicas"] = 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["args"] = [
        f"--prometheus-url={URL}/" if each.startswith("--prometheus-url=") else each for each in container["args"]
    ]
    config = {"name": "adapter-config", "namespace": MONITORING}
    data = {"config.yaml": yaml.safe_dump({"externalRules": rules})}
    return [*found, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": config, "data": data}, _external_metrics()]


@contextmanager
def installed(manifests: list[dict[str, Any]]) -> Iterator[None]:
    """Applied while the block runs, each into the namespace that it names, by the server: KEDA's CRDs are large."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    run("kubectl", "apply", "--server-side", "-f", "-", text=text)
    try:
        for each in manifests:
            if each["kind"] == "Deployment":
                name, namespace = each["metadata"]["name"], each["metadata"]["namespace"]
                argv = ("kubectl", "-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=4m")
                run(*argv, bound_s=250)
        run("kubectl", "wait", "--for=condition=Available", f"apiservice/{_API}", "--timeout=2m", bound_s=130)
        yield
    finally:
        run("kubectl", "delete", "--ignore-not-found", "--wait=true", "-f", "-", text=text, bound_s=300)


def _external_metrics() -> dict[str, Any]:
    spec = {
        "group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
        "insecureSkipTLSVerify": True, "service": {"name": _ADAPTER, "namespace": MONITORING},
    }  # fmt: skip
    return {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": _API}, "spec": spec}


def _with_images(manifest: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    """Requests are small too: the node has two cores."""
    if manifest["kind"] == "Deployment":
        for each in manifest["spec"]["template"]["spec"]["containers"]:
            each |= {"image": images[each["name"]], "imagePullPolicy": "IfNotPresent"}
            each["resources"] = {"requests": {"cpu": "25m", "memory": "64Mi"}}
    return manifest
