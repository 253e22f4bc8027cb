"""What all objects of a cluster share: names, labels, owner, ports, and how a pod of ours is locked down. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.crd import API_VERSION, GROUP, KIND
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.parts import Resources

Manifest = dict[str, Any]

MANAGER = "agentserving-operator"
NAME = "agentserving"
# Whoever speaks gRPC to control plane and sidecars, or tickets to engines, bears this label.
CLIENT_LABEL = f"{GROUP}/client"
# Nobody in particular: the user of distroless images; etcd, engines' volumes and ours are this group's.
USER = 65_532


class Component(StrEnum):
    """A part of a cluster; also the end of its objects' names."""

    ENGINE = "engine"
    CONTROL_PLANE = "control-plane"
    GATEWAY = "gateway"
    ETCD = "etcd"


class Port:
    """Container ports. `*_HTTP` answer probes and metrics."""

    ENGINE = 8000
    SIDECAR = 7071
    SIDECAR_HTTP = 7072
    CONTROL_PLANE = 7070
    CONTROL_PLANE_HTTP = 7080
    GATEWAY = 8080
    GATEWAY_HTTP = 8081
    ETCD_CLIENT = 2379
    ETCD_PEER = 2380
    ETCD_HTTP = 2381


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What the operator was installed with."""

    agentserving: str
    vllm: str
    etcd: str
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentServingCluster:
    """One AgentServingCluster, as manifests are made from it."""

    name: str
    namespace: str
    uid: str
    spec: ClusterSpec
    images: Images
    generation: int = 0
    # Tells one set of trusted CAs from another; "" = not known. etcd reads its own once.
    trust: str = ""
    # Asks for a new ticket key when it is another one than before; "" = does not ask.
    key_request: str = ""

    def child(self, component: Component) -> str:
        """Name of a component's objects."""
        return f"{self.name}-{component}"

    def address(self, component: Component, port: int) -> str:
        """host:port of a component's Service."""
        return service_address(self.namespace, self.name, component, port)

    @property
    def ticket_key_name(self) -> str:
        """Name of the Secret with the key that signs tickets."""
        return f"{self.name}-ticket-key"


def service_address(namespace: str, cluster_name: str, component: Component, port: int) -> str:
    """host:port of a Service, inside the cluster; the cluster's DNS suffix is found by search."""
    return f"{cluster_name}-{component}.{namespace}.svc:{port}"


def selector(cluster_name: str, component: Component) -> dict[str, str]:
    """Labels that tell a component's pods from all others, and never change."""
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": cluster_name,
        "app.kubernetes.io/component": component.value,
    }


def labels(cluster_name: str, component: Component) -> dict[str, str]:
    """Of every object."""
    return {
        **selector(cluster_name, component),
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/part-of": NAME,
    }


def child_object(
    cluster: AgentServingCluster, api_version: str, kind: str, component: Component, name: str = "", **rest: Any
) -> Manifest:
    """An object of the cluster's, which goes when the cluster goes."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": cluster.name,
        "uid": cluster.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name or cluster.child(component),
            "namespace": cluster.namespace,
            "labels": labels(cluster.name, component),
            "ownerReferences": [owner],
        },
        **rest,
    }


def pod(cluster: AgentServingCluster, component: Component, *, restricted: bool = True, **spec: Any) -> Manifest:
    """A pod template under Pod Security `restricted`; without, containers may run as their image says."""
    security: Manifest = {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
    security["seccompProfile"] = {"type": "RuntimeDefault"}
    if restricted:
        security |= {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER}
    whole = {
        "serviceAccountName": cluster.child(component),
        "automountServiceAccountToken": False,
        # Dozens of variables for each Service, some of which look like settings of ours.
        "enableServiceLinks": False,
        "securityContext": security,
        **spec,
    }
    if cluster.images.pull_secrets:
        whole["imagePullSecrets"] = [{"name": name} for name in cluster.images.pull_secrets]
    return {"metadata": {"labels": labels(cluster.name, component)}, "spec": whole}


def container(cluster: AgentServingCluster, name: str, image: str, resources: Manifest, **rest: Any) -> Manifest:
    """A container that may do nothing but run."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": cluster.spec.engine.image_pull_policy.value,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **rest,
    }


def python(module: str, *arguments: str) -> Manifest:
    """Command of a component of ours."""
    return {"command": ["python", "-m", module], "args": list(arguments)}


# The root file system is read-only: compiled code has nowhere to go.
PYTHON_ENV: Sequence[Manifest] = ({"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},)


def resources_of(given: Resources, cpu: str, memory: str) -> Manifest:
    """As the user has it; without any requests `cpu` and `memory` are set aside."""
    found: Manifest = dict(plain(given))
    for part in found.values():
        if "ephemeralStorage" in part:
            part["ephemeral-storage"] = part.pop("ephemeralStorage")
    found.setdefault("requests", {"cpu": cpu, "memory": memory})
    return found


# A node on which many pods start at once gives each little of its processors: who is killed for being slow then starts
# anew, and none of them ever gets there. Twenty clusters at once on two cores did not, with a liveness probe alone.
STARTED = {"periodSeconds": 1, "failureThreshold": 180}
ALIVE = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}


def http_probe(port: int, path: str, **rest: int) -> Manifest:
    """Timing in seconds, as Kubernetes names it."""
    return {"httpGet": {"path": path, "port": port}, **rest}


def spread(cluster: AgentServingCluster, component: Component) -> list[Manifest]:
    """Over nodes where there are several; one node takes all of them."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(cluster.name, component)},
        }
    ]


def secret_volume(name: str, secret: str) -> Manifest:
    """Readable by the pod's group alone."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def port(name: str, number: int) -> Manifest:
    """A container's."""
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def service_port(name: str, number: int, target: int) -> Manifest:
    """A Service's."""
    return {"name": name, "port": number, "targetPort": target, "protocol": "TCP"}
