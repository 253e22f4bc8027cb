"""Objects by which KEDA or a HorizontalPodAutoscaler scales a cluster by what its programs need. Pure.

They act on `agentserving_engines_needed` of the leading control plane, which KEDA reads itself or both read from
Prometheus, as the chart's PodMonitors store it, and set `spec.engine.replicas` through the scale subresource.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

METRIC = "agentserving_engines_needed"
TARGET = {"apiVersion": "agentserving.io/v1alpha1", "kind": "AgentServingCluster"}
# Label that the chart's PodMonitors take from pods.
INSTANCE = "app_kubernetes_io_instance"
# Of an engine, programs may need a share. That calls wait says by itself that engines are full: it has no share.
SHARED, WAITING = ("context", "calls", "service"), "waiting"
# Of the control plane's container and Service (the operator's manifests).
METRICS_PORT = 7080
# Between two looks of KEDA, while there is no engine.
POLLING_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """The cluster and its bounds. `target_percent`: share of an engine that programs may need."""

    namespace: str
    name: str
    least: int
    most: int
    target_percent: int
    scale_in_s: int
    idle_s: int
    # Secret with the token that readers of metrics must send; "" = they need none.
    token_secret: str = ""


def of_cluster(cluster: dict[str, Any]) -> Scaled:
    """Bounds are those of spec.engine.autoscaling, or its defaults, and twice the engines that there are."""
    metadata, spec = cluster["metadata"], cluster["spec"]
    engine = spec.get("engine", {})
    given = engine.get("autoscaling") or {}
    return Scaled(
        namespace=metadata["namespace"],
        name=metadata["name"],
        least=given.get("min", 1),
        most=given.get("max", max(2, 2 * engine.get("replicas", 1))),
        target_percent=given.get("targetPercent", 80),
        scale_in_s=given.get("scaleInSeconds", 300),
        idle_s=given.get("idleSeconds", 600),
        token_secret=spec.get("network", {}).get("metricsTokenSecretName", ""),
    )


def query(scaled: Scaled) -> str:
    """PromQL for the engines that are needed."""
    labels = f'namespace="{scaled.namespace}",{INSTANCE}="{scaled.name}"'
    shared = f'{METRIC}{{{labels},signal!="{WAITING}"}} / {scaled.target_percent / 100:g}'
    return f'max({shared} or {METRIC}{{{labels},signal="{WAITING}"}})'


def keda_objects(scaled: Scaled, prometheus_url: str = "") -> list[dict[str, Any]]:
    """KEDA's ScaledObject, which reads Prometheus or, without one, control planes; and how it reads with a token.

    A held call activates it, so `minReplicaCount` may be 0.
    """
    if prometheus_url:
        return [_scaled_object(scaled, [_prometheus_trigger(scaled, prometheus_url)])]
    triggers = [_control_plane_trigger(scaled, signal) for signal in (*SHARED, WAITING)]
    return [*([_authentication(scaled)] if scaled.token_secret else []), _scaled_object(scaled, triggers)]


def _scaled_object(scaled: Scaled, triggers: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(scaled),
        "spec": {
            "scaleTargetRef": {**TARGET, "name": scaled.name},
            "pollingInterval": POLLING_S,
            "cooldownPeriod": scaled.idle_s,
            # A new object does not take the engines of an idle cluster away immediately.
            "initialCooldownPeriod": scaled.idle_s,
            "minReplicaCount": scaled.least,
            "maxReplicaCount": scaled.most,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaled)}},
            "triggers": triggers,
        },
    }


def _prometheus_trigger(scaled: Scaled, url: str) -> dict[str, Any]:
    return {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": url,
            "query": query(scaled),
            "threshold": "1",
            "activationThreshold": "0",
            # By default, KEDA takes a Prometheus that has lost its targets for programs that need no engine.
            "ignoreNullValues": "false",
        },
    }


def _control_plane_trigger(scaled: Scaled, signal: str) -> dict[str, Any]:
    """Asks every control plane, of which the leading one has the metric."""
    target = 1 if signal == WAITING else scaled.target_percent / 100
    return {
        "type": "metrics-api",
        "name": signal,
        "metricType": "AverageValue",
        "metadata": {
            "url": f"http://{scaled.name}-control-plane.{scaled.namespace}.svc:{METRICS_PORT}/metrics",
            "format": "prometheus",
            "valueLocation": f'{METRIC}{{signal="{signal}"}}',
            "targetValue": f"{target:g}",
            "activationTargetValue": "0",
            "aggregateFromKubeServiceEndpoints": "true",
            "aggregationType": "max",
            **({"authMode": "bearer"} if scaled.token_secret else {}),
        },
        **({"authenticationRef": {"name": _metadata(scaled)["name"]}} if scaled.token_secret else {}),
    }


def _authentication(scaled: Scaled) -> dict[str, Any]:
    token = {"parameter": "token", "name": scaled.token_secret, "key": "token"}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": _metadata(scaled),
        "spec": {"secretTargetRef": [token]},
    }


def pod_autoscaler(scaled: Scaled) -> dict[str, Any]:
    """A HorizontalPodAutoscaler of Kubernetes, for a metrics adapter with `adapter_rule`."""
    others = {"key": "signal", "operator": "NotIn", "values": [WAITING]}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(scaled),
        "spec": {
            "scaleTargetRef": {**TARGET, "name": scaled.name},
            # Zero needs a feature gate of Kubernetes' own.
            "minReplicas": max(1, scaled.least),
            "maxReplicas": scaled.most,
            "behavior": _behavior(scaled),
            "metrics": [
                _external(
                    {"matchLabels": {INSTANCE: scaled.name}, "matchExpressions": [others]},
                    f"{scaled.target_percent * 10}m",
                ),
                _external({"matchLabels": {INSTANCE: scaled.name, "signal": WAITING}}, "1"),
            ],
        },
    }


def _external(selector: dict[str, Any], average: str) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": average}
    return {"type": "External", "external": {"metric": {"name": METRIC, "selector": selector}, "target": target}}


def _behavior(scaled: Scaled) -> dict[str, Any]:
    return {"scaleDown": {"stabilizationWindowSeconds": scaled.scale_in_s}}


def _metadata(scaled: Scaled) -> dict[str, Any]:
    return {"name": f"{scaled.name}-engines", "namespace": scaled.namespace}


def adapter_rule() -> dict[str, Any]:
    """prometheus-adapter's rule: of the signals that are asked for, the largest."""
    return {
        "externalRules": [
            {
                "seriesQuery": f'{METRIC}{{{INSTANCE}!=""}}',
                "resources": {"overrides": {"namespace": {"resource": "namespace"}}},
                "metricsQuery": "max(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
            }
        ]
    }
