"""What a visit has to do with autoscaling: it says what is there, and takes over what the scaler wants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from agentserving_operator.control_planes import Target
from agentserving_operator.manifests import AgentServingCluster, Component, Manifest
from agentserving_operator.scaler import Key, Seen, Wanted, range_of
from agentserving_operator.spec.autoscaling import Autoscaling, ScalerType
from agentserving_operator.spec.status import AutoscalingStatus


class Scaling(Protocol):
    """What a visit asks of the scaler; `scaler.Scaler` implements it."""

    def seen(self, key: Key, seen: Seen) -> Wanted:
        """What is there now; returns what should be."""

    def aim(self, key: Key, target: Target | None, pods: Collection[str]) -> None:
        """The control plane of a cluster, None = it does not serve; and the pods that exist, by name."""

    def recorded(self, key: Key, engine_ids: Collection[str]) -> None:
        """The status says now that these engines are drained."""

    def forget(self, key: Key) -> None:
        """The cluster is gone, or scales no longer."""


def scaled(
    scaling: Scaling, cluster: AgentServingCluster, engines: Manifest | None, previous: Mapping[str, Any]
) -> tuple[AgentServingCluster, AutoscalingStatus | None]:
    """The cluster with as many engines as it should have; `engines`: the live StatefulSet; `previous`: the status."""
    key, spec, live = (cluster.namespace, cluster.name), cluster.spec.engine, range_of(engines)
    before = previous.get("autoscaling") or {}
    recorded, settings = tuple(before.get("draining", ())), spec.autoscaling
    if settings is None and recorded:
        # Autoscaling was switched off: engines that were about to leave stay.
        settings = Autoscaling(scaler=ScalerType.EXTERNAL, least=0, most=256)
    if settings is None:
        scaling.forget(key)
        # Ordinals do not move because autoscaling was switched off: that would replace engines.
        start = live.start if live is not None else 0
        return replace(cluster, engine_range=replace(cluster.engines, start=start)), None
    wanted = scaling.seen(
        key,
        Seen(
            settings=settings,
            replicas=spec.replicas,
            live=live,
            prefix=f"{cluster.child(Component.ENGINE)}-",
            recorded=recorded,
            desired=before.get("desired"),
            from_zero=cluster.spans_nodes,
        ),
    )
    status = AutoscalingStatus(desired=wanted.desired, reason=wanted.reason.value, draining=wanted.recorded)
    return replace(cluster, engine_range=wanted.range), status
