"""Objects by which KEDA or a HorizontalPodAutoscaler scales a cluster by what its programs need. Pure.

Both read `agentserving_engines_needed` of the leading control plane from Prometheus, as the chart's PodMonitors store
it, and set `spec.engine.replicas` through the scale subresource.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

METRIC = "agentserving_engines_needed"
TARGET = {"apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster"}
# Some scrapes.
LASTING = "1m"
# Label that the chart's PodMonitors take from pods.
INSTANCE = "app_kubernetes_io_instance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """The cluster and its bounds. `target_percent`: share of an engine that programs may need."""

    namespace: str
    name: str
    least: int
    most: int
    target_percent: int
    scale_in_s: int


def of_cluster(cluster: dict[str, Any]) -> Scaled:
    """Bounds are those of spec.engine.autoscaling, or its defaults, and twice the engines that there are."""
    metadata, engine = cluster["metadata"], cluster["spec"].get("engine", {})
    given = engine.get("autoscaling") or {}
    return Scaled(
        namespace=metadata["namespace"],
        name=metadata["name"],
        least=given.get("min", 1),
        most=given.get("max", max(2, 2 * engine.get("replicas", 1))),
        target_percent=given.get("targetPercent", 80),
        scale_in_s=given.get("scaleInSeconds", 300),
    )


def query(scaled: Scaled) -> str:
    """PromQL for the engines that are needed.

    That calls wait says by itself that engines are full, so there is no target, and counts when it lasts: a few large
    calls wait for each other now and then.
    """
    labels = f'namespace="{scaled.namespace}",{INSTANCE}="{scaled.name}"'
    others = f'{METRIC}{{{labels},signal!="waiting"}} / {scaled.target_percent / 100:g}'
    return f'max({others} or min_over_time({METRIC}{{{labels},signal="waiting"}}[{LASTING}]))'


def scaled_object(scaled: Scaled, prometheus_url: str) -> dict[str, Any]:
    """KEDA's ScaledObject. A held call activates it, so `minReplicaCount` may be 0."""
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": f"{scaled.name}-engines", "namespace": scaled.namespace},
        "spec": {
            "scaleTargetRef": {**TARGET, "name": scaled.name},
            "pollingInterval": 5,
            "cooldownPeriod": 600,
            "minReplicaCount": scaled.least,
            "maxReplicaCount": scaled.most,
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {"scaleDown": {"stabilizationWindowSeconds": scaled.scale_in_s}}
                }
            },
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": prometheus_url,
                        "query": query(scaled),
                        "threshold": "1",
                        "activationThreshold": "0",
                    },
                }
            ],
        },
    }


def pod_autoscaler(scaled: Scaled) -> dict[str, Any]:
    """A HorizontalPodAutoscaler of Kubernetes, for a metrics adapter with `adapter_rule`."""
    metric = {"name": METRIC, "selector": {"matchLabels": {INSTANCE: scaled.name}}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": f"{scaled.name}-engines", "namespace": scaled.namespace},
        "spec": {
            "scaleTargetRef": {**TARGET, "name": scaled.name},
            # Zero needs a feature gate of Kubernetes' own.
            "minReplicas": max(1, scaled.least),
            "maxReplicas": scaled.most,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": scaled.scale_in_s}},
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": metric,
                        "target": {"type": "AverageValue", "averageValue": f"{scaled.target_percent * 10}m"},
                    },
                }
            ],
        },
    }


def adapter_rule() -> dict[str, Any]:
    """prometheus-adapter's rule: of the signals, the largest."""
    return {
        "externalRules": [
            {
                "seriesQuery": f'{METRIC}{{{INSTANCE}!=""}}',
                "resources": {"overrides": {"namespace": {"resource": "namespace"}}},
                "metricsQuery": "max(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
            }
        ]
    }
