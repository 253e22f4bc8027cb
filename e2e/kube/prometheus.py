"""A Prometheus in the cluster, which scrapes as prometheus-operator would make it from the chart's PodMonitors."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from kube.kubectl import run
from kube.paths import CHART, ROOT

NAMESPACE = "monitoring"
URL = f"http://prometheus.{NAMESPACE}:9090"
_META = "__meta_kubernetes_pod"


def setting(name: str) -> str:
    """A setting of e2e/cluster/lib.sh."""
    return run("bash", "-c", f'. "$1" && echo "${{{name}}}"', "-", str(ROOT / "e2e/cluster/lib.sh")).strip()


def configuration(scrapes: list[dict[str, Any]]) -> dict[str, Any]:
    """The ConfigMap that it reads when it starts."""
    named = {"name": "prometheus", "namespace": NAMESPACE}
    data = {"prometheus.yaml": json.dumps({"scrape_configs": scrapes})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": named, "data": data}


def objects() -> list[dict[str, Any]]:
    """All that it needs, in its namespace."""
    scrapes = [each for monitor in _monitors() for each in _scrapes(monitor)]
    labels, named = {"app": "prometheus"}, {"name": "prometheus", "namespace": NAMESPACE}
    role, rbac = "e2e-prometheus", "rbac.authorization.k8s.io"
    container = {
        "name": "prometheus", "image": setting("PROMETHEUS_IMAGE"),
        "args": ["--config.file=/etc/prometheus/prometheus.yaml", "--storage.tsdb.path=/data"],
        "ports": [{"containerPort": 9090}],
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "25m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/prometheus"}, {"name": "data", "mountPath": "/data"}],
    }  # fmt: skip
    pod = {
        "serviceAccountName": "prometheus", "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "prometheus"}}, {"name": "data", "emptyDir": {}}],
    }  # fmt: skip
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named},
        {
            "apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": role},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": f"{rbac}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": role},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", **named}],
        },
        configuration(scrapes),
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": named,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": named,
            "spec": {"selector": labels, "ports": [{"port": 9090}]},
        },
    ]  # fmt: skip


def _monitors() -> list[dict[str, Any]]:
    text = run(
        "helm", "template", "agentserving", str(CHART), "-n", "agentserving",
        "--api-versions", "monitoring.coreos.com/v1/PodMonitor",
    )  # fmt: skip
    return [each for each in yaml.safe_load_all(text) if each and each["kind"] == "PodMonitor"]


def _sanitized(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _scrapes(monitor: dict[str, Any]) -> list[dict[str, Any]]:
    """Scrape configurations for a PodMonitor of this chart: labels, ports, paths and labels taken from pods."""
    spec, name = monitor["spec"], monitor["metadata"]["name"]
    keep = [
        {"action": "keep", "source_labels": [f"{_META}_label_{_sanitized(label)}"], "regex": re.escape(value)}
        for label, value in spec["selector"]["matchLabels"].items()
    ]
    copied = [
        {"source_labels": [f"{_META}_label_{_sanitized(label)}"], "target_label": _sanitized(label)}
        for label in spec.get("podTargetLabels", [])
    ]
    own = [
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": [f"{_META}_name"], "target_label": "pod"},
    ]
    return [
        {
            "job_name": f"podMonitor/{name}/{number}",
            "scrape_interval": endpoint["interval"],
            "metrics_path": endpoint.get("path", "/metrics"),
            "kubernetes_sd_configs": [{"role": "pod"}],
            "relabel_configs": [
                *keep,
                {"action": "keep", "source_labels": [f"{_META}_container_port_name"], "regex": endpoint["port"]},
                {"action": "drop", "source_labels": [f"{_META}_phase"], "regex": "(Failed|Succeeded)"},
                *own,
                *copied,
            ],
        }
        for number, endpoint in enumerate(spec["podMetricsEndpoints"])
    ]
