"""What a user writes into an AgentServingCluster: the one source of the CRD's schema, its defaults and of parsing.

Every string, number and list is bounded, durations are whole seconds (or milliseconds where a second is too long), and
each CEL rule stands beside the same rule in Python, so that the operator refuses what the API server would refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import Rule, choice, flag, integer, items, mapping, struct, text
from agentserving_operator.spec.parts import (
    QUANTITY,
    Resources,
    SecretKey,
    TaintEffect,
    Toleration,
)
from agentserving_operator.spec.scheduling import Scheduling
from agentserving_operator.spec.tls import Tls

# Of the four A100 boards, as NVIDIA's feature discovery labels nodes.
A100_PRODUCTS = (
    "NVIDIA-A100-SXM4-80GB",
    "NVIDIA-A100-SXM4-40GB",
    "NVIDIA-A100-80GB-PCIe",
    "NVIDIA-A100-PCIE-40GB",
)
# The longest child name is <name>-control-plane; StatefulSets put a hash of 11 behind <name>-engine in a label of 63.
MAX_NAME = 40
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


class EngineType(StrEnum):
    """What runs in an engine pod."""

    VLLM = "VLLM"
    SIMULATOR = "Simulator"


class CacheType(StrEnum):
    """Where an engine keeps a model's files."""

    EMPTY_DIR = "EmptyDir"
    CLAIM = "PersistentVolumeClaim"
    EXISTING = "ExistingClaim"


class StoreType(StrEnum):
    """Where the control plane keeps its process table."""

    ETCD = "Etcd"
    EXTERNAL = "ExternalEtcd"
    MEMORY = "Memory"


class PullPolicy(StrEnum):
    """Kubernetes' own."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class ServiceType(StrEnum):
    """Kubernetes' own."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCache:
    """The volume below the model's files."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.type == 'ExistingClaim') == has(self.claimName)",
            "claimName is needed with type ExistingClaim, and with no other",
            lambda c: (c.type is CacheType.EXISTING) == (c.claim_name is not None),
            "claimName",
        ),
        Rule(
            "!has(self.storageClassName) || self.type == 'PersistentVolumeClaim'",
            "storageClassName goes with type PersistentVolumeClaim only",
            lambda c: c.storage_class_name is None or c.type is CacheType.CLAIM,
            "storageClassName",
        ),
    )

    type: CacheType = choice(
        "EmptyDir: fetched again by every pod. PersistentVolumeClaim: a volume for each engine. ExistingClaim: one "
        "that all engines share, so ReadWriteMany.",
        default=CacheType.EMPTY_DIR,
    )
    size: str = text("Size of the volume, or bound of the directory.", 32, default="100Gi", pattern=QUANTITY)
    storage_class_name: str | None = text("Absent: the cluster's default.", 253, default=None, pattern=DNS_SUBDOMAIN)
    claim_name: str | None = text("The claim of type ExistingClaim.", 253, default=None, pattern=DNS_SUBDOMAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which model all engines serve."""

    name: str = text(
        "Hugging Face name or path, as vLLM's --model takes it. Immutable.",
        256,
        min_length=1,
        pattern=r"^[^\s-][^\s]*$",
        immutable=True,
    )
    served_name: str | None = text(
        "What clients call it; absent: its name.", 256, default=None, min_length=1, pattern=r"^[^\s-][^\s]*$"
    )
    max_length: int | None = integer("Context in tokens; absent: the model's own.", 1, 16_777_216, default=None)
    token: SecretKey | None = struct("Hugging Face token, for models that need one.", default=None)
    cache: ModelCache = struct("Where its files are kept. Immutable.", default=ModelCache, immutable=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """Where engine pods run; A100 unless told otherwise. Not looked at by simulated engines."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.tensorParallelSize) || self.tensorParallelSize <= self.count",
            "tensorParallelSize must be at most count",
            lambda a: a.tensor_parallel_size is None or a.tensor_parallel_size <= a.count,
            "tensorParallelSize",
        ),
    )

    resource_name: str = text(
        "Extended resource of the device.",
        253,
        default="nvidia.com/gpu",
        min_length=1,
        pattern=r"^[a-zA-Z0-9]([-./a-zA-Z0-9]*[a-zA-Z0-9])?$",
    )
    count: int = integer("Devices of one engine; 0: none (CPU).", 0, 64, default=1)
    tensor_parallel_size: int | None = integer("Absent: count.", 1, 64, default=None)
    product_label: str = text("Node label that tells the product.", 253, default="nvidia.com/gpu.product", min_length=1)
    products: tuple[str, ...] = items(
        "Nodes whose label is one of these; empty: any node.", 16, list_type="set", default=A100_PRODUCTS, max_length=63
    )
    node_selector: Mapping[str, str] = mapping("Further node labels.", 16, 63)
    tolerations: tuple[Toleration, ...] = items(
        "Taints that engine pods bear.", 16, default=(Toleration(key="nvidia.com/gpu", effect=TaintEffect.NO_SCHEDULE),)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """The simulated engine."""

    speed_percent: int = integer("100 = as fast as an A100 with an 8B model.", 1, 100_000, default=100)
    num_blocks: int = integer("KV blocks of 16 tokens.", 16, 10_000_000, default=16_384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engines: one pod each."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.simulator) || self.type == 'Simulator'",
            "simulator goes with type Simulator only",
            lambda e: e.simulator is None or e.type is EngineType.SIMULATOR,
            "simulator",
        ),
        Rule(
            "self.type == 'VLLM' || self.kvOffloadGiB == 0",
            "kvOffloadGiB goes with type VLLM only",
            lambda e: e.type is EngineType.VLLM or e.kv_offload_gi_b == 0,
            "kvOffloadGiB",
        ),
    )

    type: EngineType = choice("VLLM, or Simulator: a cost model, no GPU.", default=EngineType.VLLM)
    replicas: int = integer("Engines; what `kubectl scale` sets.", 0, 256, default=1)
    image: str | None = text(
        "vLLM with the agentserving plugin; absent: what the operator was installed with.",
        512,
        default=None,
        min_length=1,
        pattern=r"^[a-zA-Z0-9][-a-zA-Z0-9._/:@]*$",
    )
    image_pull_policy: PullPolicy = choice("Of every container of the cluster.", default=PullPolicy.IF_NOT_PRESENT)
    accelerator: Accelerator = struct("Devices and the nodes that have them.", default=Accelerator)
    max_sequences: int | None = integer("Calls that run at once; absent: vLLM's choice.", 1, 65_536, default=None)
    kv_offload_gi_b: int = integer("KV cache in host memory, GiB over all devices; 0: none.", 0, 16_384, default=0)
    shared_memory: str = text("Size of /dev/shm.", 32, default="8Gi", pattern=QUANTITY)
    extra_args: tuple[str, ...] = items("Further arguments of vLLM or the simulator.", 128, max_length=1024)
    resources: Resources = struct("Requests and limits but the accelerator.", default=Resources)
    simulator: Simulator | None = struct("Settings of type Simulator.", default=None)
    startup_seconds: int = integer("How long loading the model may take.", 10, 86_400, default=3_600)
    drain_seconds: int = integer("How long a leaving engine lets its calls run on.", 1, 86_400, default=300)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """The process table, the load balancer and the policy's keeper."""

    replicas: int = integer("One leads, the others stand by; more than 1 need an etcd.", 1, 5, default=1)
    program_idle_seconds: int = integer("A program without calls for this long is given up.", 1, 604_800, default=600)
    resources: Resources = struct("Requests and limits.", default=Resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The OpenAI-speaking front."""

    replicas: int = integer("Gateways; they keep no state.", 1, 64, default=1)
    service_type: ServiceType = choice("How it is reached.", default=ServiceType.CLUSTER_IP)
    port: int = integer("Port of the Service.", 1, 65_535, default=80)
    max_body_bytes: int = integer("Largest request.", 1_024, 1 << 30, default=8 << 20)
    drain_seconds: int = integer("How long a leaving gateway lets its calls run on.", 0, 3_600, default=300)
    resources: Resources = struct("Requests and limits.", default=Resources)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdStore:
    """An etcd that the operator runs."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule("self.members in [1, 3]", "members must be 1 or 3", lambda e: e.members in (1, 3), "members"),
    )

    members: int = integer("1 or 3.", 1, 3, default=1)
    size: str = text("Volume of a member.", 32, default="10Gi", pattern=QUANTITY)
    storage_class_name: str | None = text("Absent: the cluster's default.", 253, default=None, pattern=DNS_SUBDOMAIN)
    quota_mi_b: int = integer("etcd's --quota-backend-bytes, MiB.", 64, 8_192, default=2_048)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalEtcd:
    """An etcd of yours."""

    endpoints: tuple[str, ...] = items(
        "host:port of each member.", 9, list_type="set", default=(), min_length=3, max_length=261,
        pattern=r"^[^\s/:]+:[0-9]{1,5}$",
    )  # fmt: skip
    prefix: str | None = text(
        "Keys of this cluster begin with it; absent: /agentserving/<namespace>/<name>.", 253, default=None,
        pattern=r"^/[-a-zA-Z0-9_./]+$",
    )  # fmt: skip
    tls_secret_name: str | None = text(
        "Secret with ca.crt and, where etcd asks for a client certificate, tls.crt and tls.key; absent: no TLS.",
        253,
        default=None,
        pattern=DNS_SUBDOMAIN,
    )
    client_certificate: bool = flag("The Secret has tls.crt and tls.key.", default=True)

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule("size(self.endpoints) > 0", "needs at least one endpoint", lambda e: len(e.endpoints) > 0, "endpoints"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where the process table is kept."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.type == 'ExternalEtcd') == has(self.external)",
            "external is needed with type ExternalEtcd, and with no other",
            lambda s: (s.type is StoreType.EXTERNAL) == (s.external is not None),
            "external",
        ),
        Rule(
            "!has(self.etcd) || self.type == 'Etcd'",
            "etcd goes with type Etcd only",
            lambda s: s.etcd is None or s.type is StoreType.ETCD,
            "etcd",
        ),
    )

    type: StoreType = choice(
        "Etcd, ExternalEtcd, or Memory: lost when the control plane restarts. Immutable.",
        default=StoreType.ETCD,
        immutable=True,
    )
    etcd: EtcdStore | None = struct("Settings of type Etcd. Immutable.", default=None, immutable=True)
    external: ExternalEtcd | None = struct("Settings of type ExternalEtcd.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """The whole."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.store.type != 'Memory' || self.controlPlane.replicas == 1",
            "controlPlane.replicas must be 1 with store.type Memory: another could not read what one has in memory",
            lambda s: s.store.type is not StoreType.MEMORY or s.control_plane.replicas == 1,
            "controlPlane.replicas",
        ),
    )

    model: Model = struct("Which model is served.")
    engine: Engine = struct("What serves it.", default=Engine)
    scheduling: Scheduling = struct("Who is served next.", default=Scheduling)
    control_plane: ControlPlane = struct("The control plane.", default=ControlPlane)
    gateway: Gateway = struct("Where agents connect.", default=Gateway)
    store: Store = struct("Where accounts are kept.", default=Store)
    tls: Tls = struct("Certificates between its parts.", default=Tls)
