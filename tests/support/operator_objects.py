"""Clusters as tests of the operator need them, and ways to look into what is made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from agentserving.client.values import TenantSettings
from agentserving_operator.control_planes import ControlPlanes, Target
from agentserving_operator.manifests import AgentServingCluster, Images, Manifest
from agentserving_operator.observe.tenants import Outcome
from agentserving_operator.scaler import Scaler
from agentserving_operator.spec.auth import in_force
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.parsing import parse

IMAGES = Images(agentserving="registry.test/agentserving:1", vllm="registry.test/vllm:1", etcd="registry.test/etcd:1")


def make_cluster(images: Images = IMAGES, **spec: Any) -> AgentServingCluster:
    """A cluster `demo` in namespace `ns`; `spec` as a user writes it, the model filled in."""
    parsed = parse(ClusterSpec, {"model": {"name": "meta-llama/Llama-3.1-8B-Instruct"}, **spec})
    return AgentServingCluster(
        name="demo", namespace="ns", uid="11111111-2222-3333-4444-555555555555", spec=parsed,
        images=images, generation=3, client_auth=in_force(parsed.auth.clients, parsed.tls.on, {}),
    )  # fmt: skip


def no_scaling() -> Scaler:
    """For clusters without autoscaling, which never ask."""
    return Scaler(ControlPlanes(), lambda namespace, name: None)


def pod_spec(workload: Manifest) -> Manifest:
    """Of a Deployment or StatefulSet."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def only_container(workload: Manifest) -> Manifest:
    """Its one main container."""
    (found,) = pod_spec(workload)["containers"]
    return dict(found)


def env_of(container: Manifest) -> dict[str, Any]:
    """Variables by name: their value, or where it comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


def value_after(arguments: list[str], flag: str) -> str:
    """What a flag is given."""
    return arguments[arguments.index(flag) + 1]


async def no_tenants(target: Target, wanted: Mapping[str, TenantSettings], forget: Collection[str]) -> Outcome:
    """For clusters without AgentServingTenants."""
    assert not wanted
    assert not forget
    return Outcome(refused={}, forgotten=frozenset())
