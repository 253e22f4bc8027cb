"""What all objects of a cluster share: names, labels, owner, ports, and the security settings of its pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from agentserving_operator.quantity import parse_quantity
from agentserving_operator.scaling.plan import Range
from agentserving_operator.spec.auth import ClientAuth
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.crd import API_VERSION, GROUP, KIND
from agentserving_operator.spec.parsing import plain
from agentserving_operator.spec.parts import Resources

Manifest = dict[str, Any]

MANAGER = "agentserving-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"
NAME = "agentserving"
# Pods with this label may connect to control planes, sidecars and engines.
CLIENT_LABEL = f"{GROUP}/client"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
# User and group of distroless images. Volumes of all pods belong to this group.
USER = 65_532


class Component(StrEnum):
    """A part of a cluster; also the suffix of its objects' names."""

    ENGINE = "engine"
    # The further pods of engines on several nodes.
    ENGINE_WORKER = "engine-worker"
    CONTROL_PLANE = "control-plane"
    GATEWAY = "gateway"
    ETCD = "etcd"
    BATCHES = "batches"


class Port:
    """Container ports. Those named *_HTTP serve probes and metrics."""

    ENGINE = 8000
    # Where the nodes of an engine meet. Their libraries (NCCL, gloo, ZeroMQ) choose further ports themselves.
    ENGINE_GROUP = 29501
    SIDECAR = 7071
    SIDECAR_HTTP = 7072
    CONTROL_PLANE = 7070
    # Of clients with keys, and without certificates.
    CONTROL_PLANE_CLIENTS = 7075
    # Of gateways and sidecars, who learn it from the leader: it is in no Service.
    CONTROL_PLANE_STREAMS = 7076
    CONTROL_PLANE_HTTP = 7080
    GATEWAY = 8080
    GATEWAY_HTTP = 8081
    # As the Gateway API Inference Extension's own endpoint picker.
    EXT_PROC = 9002
    BATCHES = 7090
    BATCHES_HTTP = 7091
    ETCD_CLIENT = 2379
    ETCD_PEER = 2380
    ETCD_HTTP = 2381


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images that the operator was installed with."""

    agentserving: str
    vllm: str
    etcd: str
    pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentServingCluster:
    """One AgentServingCluster, with all that manifests depend on."""

    name: str
    namespace: str
    uid: str
    spec: ClusterSpec
    images: Images
    generation: int = 0
    # Identifies the set of trusted CAs; "" = not known. etcd reads its CAs only at its start.
    trust: str = ""
    # Where the operator runs; "" = outside Kubernetes.
    operator_namespace: str = ""
    # What clients must present: resolved from the spec and the last status (`spec.auth.in_force`).
    client_auth: ClientAuth = ClientAuth.NONE
    # Ordinals of engines, the first and their number; None = from 0, as many as the spec says.
    engine_range: Range | None = None
    # A value that differs from the last one requests a new ticket key; "" = no request.
    key_request: str = ""

    def child(self, component: Component) -> str:
        """Name of a component's objects."""
        return f"{self.name}-{component}"

    def address(self, component: Component, port: int) -> str:
        """host:port of a component's Service."""
        return service_address(self.namespace, self.name, component, port)

    @property
    def engines(self) -> Range:
        """Ordinals of its engines."""
        return self.engine_range or Range(0, self.spec.engine.replicas)

    @property
    def spans_nodes(self) -> bool:
        """Whether an engine is a group of pods, one on each of its nodes."""
        return self.spec.engine.nodes > 1

    @property
    def ticket_key_name(self) -> str:
        return f"{self.name}-ticket-key"


def service_address(namespace: str, cluster_name: str, component: Component, port: int) -> str:
    """host:port of a Service inside the cluster; DNS search domains complete the name."""
    return f"{cluster_name}-{component}.{namespace}.svc:{port}"


def selector(cluster_name: str, component: Component) -> dict[str, str]:
    """Labels that select a component's pods. They never change."""
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": cluster_name,
        "app.kubernetes.io/component": component.value,
    }


def labels(cluster_name: str, component: Component) -> dict[str, str]:
    """Labels of every object."""
    return {
        **selector(cluster_name, component),
        MANAGED_BY: MANAGER,
        "app.kubernetes.io/part-of": NAME,
    }


def child_object(
    cluster: AgentServingCluster, api_version: str, kind: str, component: Component, name: str = "", **rest: Any
) -> Manifest:
    """An object that belongs to the cluster and is deleted with it."""
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


def pod(
    cluster: AgentServingCluster, component: Component, *, change_all_groups: bool = False, **spec: Any
) -> Manifest:
    """A pod template under Pod Security `restricted`.

    `change_all_groups`: kubelet gives each file of the volumes to the pod's group, also where the top directory has it.
    """
    security: Manifest = {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "fsGroupChangePolicy": "Always" if change_all_groups else "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    whole = {
        "serviceAccountName": cluster.child(component),
        "automountServiceAccountToken": False,
        # Service links are a dozen variables per Service, some of which vLLM and we would read as settings.
        "enableServiceLinks": False,
        "securityContext": security,
        **spec,
    }
    if cluster.images.pull_secrets:
        whole["imagePullSecrets"] = [{"name": name} for name in cluster.images.pull_secrets]
    return {"metadata": {"labels": labels(cluster.name, component)}, "spec": whole}


def container(cluster: AgentServingCluster, name: str, image: str, resources: Manifest, **rest: Any) -> Manifest:
    """A container without privileges."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": cluster.spec.engine.image_pull_policy.value,
        "resources": resources,
        # kubelet copies the end of a failed container's log into the pod's status, from where conditions quote it.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **rest,
    }


def python(module: str, *arguments: str) -> Manifest:
    """Command of one of our components."""
    return {"command": ["python", "-m", module], "args": list(arguments)}


# The root file system is read-only, so compiled code cannot be cached.
PYTHON_ENV: Sequence[Manifest] = ({"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},)


def resources_of(given: Resources, *, requests: Manifest, limits: Manifest | None = None) -> Manifest:
    """The user's requests and limits; `requests` and `limits` apply where the user gives none.

    A default request is never higher than the user's limit: the API server would refuse the pod.
    """
    found: Manifest = {}
    for part, amounts in dict(plain(given)).items():
        found[part] = {"ephemeral-storage" if k == "ephemeralStorage" else k: v for k, v in amounts.items()}
    user_limits = found.get("limits", {})
    found.setdefault("requests", {k: v for k, v in requests.items() if _fits(v, user_limits.get(k))})
    if limits is not None:
        found.setdefault("limits", {k: v for k, v in limits.items() if _fits(found["requests"].get(k), v)})
    return found


def _fits(request: str | None, limit: str | None) -> bool:
    return request is None or limit is None or parse_quantity(request) <= parse_quantity(limit)


def memory_limit(given: Resources) -> int | None:
    """The user's memory limit in bytes; None when there is none."""
    limit = dict(plain(given)).get("limits", {}).get("memory")
    return None if limit is None else bytes_of(limit)


def bytes_of(quantity: str) -> int:
    """Of a quantity of memory or storage, such as 20Gi."""
    return int(parse_quantity(quantity))


# On a node where many pods start together each gets little CPU. Killing the slow ones would only add more starts: with
# a liveness probe alone, twenty clusters that started together on two cores never became ready.
STARTED = {"periodSeconds": 1, "failureThreshold": 180}
ALIVE = {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}


def http_probe(port: int, path: str, **rest: int) -> Manifest:
    """A probe by GET; the other arguments are Kubernetes' timing fields, in seconds."""
    return {"httpGet": {"path": path, "port": port}, **rest}


def by_https(probe: Manifest) -> Manifest:
    """The same probe of a port with TLS; kubelet verifies no certificate."""
    return {**probe, "httpGet": {**probe["httpGet"], "scheme": "HTTPS"}}


def spread(cluster: AgentServingCluster, component: Component) -> list[Manifest]:
    """Spreads pods over nodes if there are several; a single node takes all of them."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(cluster.name, component)},
        }
    ]


def any_host(cluster: AgentServingCluster) -> str:
    """The wildcard of all interfaces; that of IPv6 takes IPv4 as well."""
    return "::" if cluster.spec.network.listens_on_ipv6 else "0.0.0.0"


def listening(cluster: AgentServingCluster, port: int) -> str:
    """Where a server in a pod listens."""
    return f"[::]:{port}" if cluster.spec.network.listens_on_ipv6 else f"0.0.0.0:{port}"


def pod_address(cluster: AgentServingCluster, port: int) -> str:
    """The pod's own address, which others dial; kubelet expands it."""
    return f"[$(POD_IP)]:{port}" if cluster.spec.network.pods_are_on_ipv6 else f"$(POD_IP):{port}"


def ip_families(cluster: AgentServingCluster) -> Manifest:
    """Fields of a Service; without any, the API server chooses."""
    network = cluster.spec.network
    found: Manifest = {"ipFamilies": list(network.ip_families)} if network.ip_families else {}
    if network.ip_family_policy is not None:
        found["ipFamilyPolicy"] = network.ip_family_policy.value
    return found


def keys_are_needed(cluster: AgentServingCluster) -> bool:
    """Whether clients have keys, and a port of their own at control planes."""
    return cluster.client_auth is ClientAuth.KEYS


def namespaces(names: Sequence[str]) -> list[Manifest]:
    """A NetworkPolicy's peer for all pods of these namespaces; no peer without any: an empty selector means all."""
    if not names:
        return []
    # The API server sets this label, and no one can give it to another namespace.
    chosen = {"key": NAMESPACE_LABEL, "operator": "In", "values": list(names)}
    return [{"namespaceSelector": {"matchExpressions": [chosen]}}]


def secret_volume(name: str, secret: str) -> Manifest:
    """A Secret as files that only the pod's group can read."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def secret_files(name: str, secret: str, files: Iterable[str]) -> Manifest:
    """As `secret_volume`, but of these files only, as far as they exist."""
    volume = secret_volume(name, secret)
    volume["secret"] |= {"items": [{"key": each, "path": each} for each in files], "optional": True}
    return volume


def port(name: str, number: int) -> Manifest:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def service_port(name: str, number: int, target: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": target, "protocol": "TCP"}
