"""The spec of an AgentServingCluster: the single source of the CRD's schema, of its defaults and of parsing.

Every string, number and list is bounded, durations are whole seconds (milliseconds where a second is too long), and
each CEL rule stands next to the same rule in Python, so that the operator refuses what the API server would refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.accelerator import Accelerator
from agentserving_operator.spec.auth import Auth, ClientAuth
from agentserving_operator.spec.autoscaling import Autoscaling
from agentserving_operator.spec.batches import Batches
from agentserving_operator.spec.control_plane import ControlPlane
from agentserving_operator.spec.fields import (
    DNS_SUBDOMAIN,
    Rule,
    choice,
    flag,
    integer,
    items,
    quantity,
    struct,
    text,
)
from agentserving_operator.spec.gateway import Gateway
from agentserving_operator.spec.model_files import ADAPTER_PLACES, ConfigMapKey, FilesSource, LoraAdapter, PullPolicy
from agentserving_operator.spec.network import Network
from agentserving_operator.spec.nodes import RULES_OF_NODES
from agentserving_operator.spec.parts import Resources, SecretKey
from agentserving_operator.spec.pod_template import PodTemplate
from agentserving_operator.spec.scheduling import Scheduling
from agentserving_operator.spec.store import Store, StoreType
from agentserving_operator.spec.tls import Tls

# The longest child name is <name>-control-plane. A StatefulSet appends a hash of 11 characters to <name>-engine in a
# label of at most 63.
MAX_NAME = 40
DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class EngineType(StrEnum):
    """What runs in an engine pod."""

    VLLM = "VLLM"
    SIMULATOR = "Simulator"


class CacheType(StrEnum):
    """Where an engine stores the model's files."""

    EMPTY_DIR = "EmptyDir"
    CLAIM = "PersistentVolumeClaim"
    EXISTING = "ExistingClaim"


class PrefixCache(StrEnum):
    """Who shares the cached prefixes of prompts."""

    PER_TENANT = "PerTenant"
    SHARED = "Shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCache:
    """The volume of the model's files."""

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
        "EmptyDir: every pod downloads the files again. PersistentVolumeClaim: a volume for each engine. "
        "ExistingClaim: a ReadWriteMany volume that all engines share.",
        default=CacheType.EMPTY_DIR,
    )
    size: str = quantity("Size of the volume, or limit of the directory.", default="100Gi")
    storage_class_name: str | None = text("Absent: the default StorageClass.", 253, default=None, pattern=DNS_SUBDOMAIN)
    claim_name: str | None = text("The claim of type ExistingClaim.", 253, default=None, pattern=DNS_SUBDOMAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model that all engines serve."""

    RULES: ClassVar[tuple[Rule, ...]] = ADAPTER_PLACES

    name: str = text(
        "Hugging Face name or path, as in vLLM's --model. Immutable.",
        256,
        min_length=1,
        pattern=r"^[^\s-][^\s]*$",
        immutable=True,
    )
    served_name: str | None = text(
        "Name that clients use; absent: the model's name.", 256, default=None, min_length=1, pattern=r"^[^\s-][^\s]*$"
    )
    also_served_as: tuple[str, ...] = items(
        "Further names of the same model. With type VLLM only.",
        16, list_type="set", max_length=256, min_length=1, pattern=r"^[^\s-][^\s]*$",
    )  # fmt: skip
    max_length: int | None = integer("Context in tokens; absent: the model's own.", 1, 16_777_216, default=None)
    token: SecretKey | None = struct("Hugging Face token, for models that need one.", default=None)
    tool_parser: str | None = text(
        "vLLM's parser of this model's tool calls (--tool-call-parser), such as hermes or llama3_json. Without it vLLM "
        "refuses chat completions with tools.",
        64,
        default=None,
        min_length=1,
        pattern=r"^[a-zA-Z0-9][-_.a-zA-Z0-9]*$",
    )
    enable_auto_tool_choice: bool = flag(
        "With toolParser: the model decides whether to call a tool, which agents expect (--enable-auto-tool-choice).",
        default=True,
    )
    reasoning_parser: str | None = text(
        "vLLM's parser of this model's reasoning (--reasoning-parser), such as deepseek_r1 or qwen3. Without it "
        "reasoning is a part of the answer.",
        64,
        default=None,
        min_length=1,
        pattern=r"^[a-zA-Z0-9][-_.a-zA-Z0-9]*$",
    )
    chat_template: ConfigMapKey | None = struct(
        "A Jinja template (--chat-template); absent: the model's own. Engines read it when they start.", default=None
    )
    lora_adapters: tuple[LoraAdapter, ...] = items(
        "LoRA adapters, listed by /v1/models with the model. A change restarts engines, one at a time.",
        64, list_type="map", keys=("name",),
    )  # fmt: skip
    max_lora_rank: int = integer("The highest rank among them.", 8, 512, default=16)
    max_loras: int | None = integer(
        "Adapters that one step computes with (--max-loras); each takes memory of the devices. Absent: vLLM's default, "
        "1: calls of other adapters wait.",
        1, 64, default=None,
    )  # fmt: skip
    max_cpu_loras: int | None = integer(
        "Adapters kept in host memory (--max-cpu-loras); the others are read again when a call names them. Absent: "
        "maxLoras.",
        1, 64, default=None,
    )  # fmt: skip
    load_format: str = text(
        "vLLM's --load-format. safetensors are data only; auto also takes pickled weights, which can run code.",
        64,
        default="safetensors",
        min_length=1,
        pattern=r"^[a-z0-9][-_.a-z0-9]*$",
    )
    trust_remote_code: bool = flag(
        "Whether code that comes with the model runs in engines (--trust-remote-code).", default=False
    )
    source: FilesSource | None = struct(
        "Where its files come from; absent: what name says. With it, name is only what clients use. With type VLLM "
        "only.",
        default=None,
    )
    cache: ModelCache = struct("Where its files are stored. Immutable.", default=ModelCache, immutable=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    speed_percent: int = integer("100: as fast as an A100 with an 8B model.", 1, 100_000, default=100)
    num_blocks: int = integer("KV blocks of 16 tokens.", 16, 10_000_000, default=16_384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engines: a pod each, or a group of pods on several nodes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        *RULES_OF_NODES,
        Rule(
            "!has(self.simulator) || self.type == 'Simulator'",
            "simulator goes with type Simulator only",
            lambda e: e.simulator is None or e.type is EngineType.SIMULATOR,
            "simulator",
        ),
        Rule(
            "self.type == 'VLLM' || self.kvOffloadGiB == 0",
            "kvOffloadGiB goes with type VLLM only",
            lambda e: e.type is EngineType.VLLM or e.kv_offload_gib == 0,
            "kvOffloadGiB",
        ),
        Rule(
            "!self.extraArgs.exists(a, a.startsWith('--data-parallel') || a.startsWith('-dp'))",
            "data parallelism is set by engine.accelerator.dataParallelSize, so that each program stays on one rank",
            lambda e: not any(a.startswith(("--data-parallel", "-dp")) for a in e.extra_args),
            "extraArgs",
        ),
        Rule(
            "!self.extraArgs.exists(a, a.contains('kv_producer') || a.contains('kv_consumer'))",
            "an engine that only prefills cannot preempt, so prefill and decode are not divided between engines: leave "
            "out kv_producer and kv_consumer (kv_both is allowed)",
            lambda e: not any("kv_producer" in a or "kv_consumer" in a for a in e.extra_args),
            "extraArgs",
        ),
    )

    type: EngineType = choice("VLLM, or Simulator: a cost model, no GPU.", default=EngineType.VLLM)
    replicas: int = integer(
        "Number of engines; `kubectl scale` sets it. With autoscaling.scaler Operator: of a new cluster.",
        0,
        256,
        default=1,
    )
    nodes: int = integer(
        "Nodes of each engine: a model that needs more devices than one node has. One pod on each, as a group of a "
        "LeaderWorkerSet, whose CRD and controller must be installed.",
        1, 32, default=1, immutable=True,
    )  # fmt: skip
    autoscaling: Autoscaling | None = struct(
        "The number of engines follows what programs need; absent: it is replicas.", default=None
    )
    image: str | None = text(
        "Image of vLLM with the agentserving plugin; absent: the one that the operator was installed with.",
        512,
        default=None,
        min_length=1,
        pattern=r"^[a-zA-Z0-9][-a-zA-Z0-9._/:@]*$",
    )
    image_pull_policy: PullPolicy = choice(
        "Pull policy of every container of the cluster.", default=PullPolicy.IF_NOT_PRESENT
    )
    accelerator: Accelerator = struct("Devices, and the nodes that have them.", default=Accelerator)
    max_sequences: int | None = integer("Calls that run in parallel; absent: vLLM's default.", 1, 65_536, default=None)
    kv_offload_gib: int = integer(
        "KV cache in host memory, GiB over all devices; 0: none.", 0, 16_384, default=0, wire="kvOffloadGiB"
    )
    shared_memory: str = quantity("Size of /dev/shm.", default="8Gi")
    prefix_cache: PrefixCache = choice(
        "PerTenant: the time to a first token reveals nothing of other tenants' prompts. Shared: one cache for all, "
        "for a cluster whose tenants may know of each other's prompts.",
        default=PrefixCache.PER_TENANT,
    )
    extra_args: tuple[str, ...] = items("More arguments for vLLM or the simulator.", 128, max_length=1024)
    resources: Resources = struct("Requests and limits of the engine, without the accelerator.", default=Resources)
    sidecar_resources: Resources = struct("Requests and limits of the sidecar.", default=Resources)
    simulator: Simulator | None = struct("Settings of type Simulator.", default=None)
    startup_seconds: int = integer("How long an engine may take to load its model.", 10, 86_400, default=3_600)
    stuck_seconds: int = integer(
        "An engine that has calls and makes no progress for this long counts as hung: new calls go to other engines.",
        1,
        3_600,
        default=5,
    )
    drain_seconds: int = integer("How long a leaving engine may finish its calls.", 1, 86_400, default=300)
    sse_keep_alive_seconds: int = integer(
        "A stream that is silent for this long gets a comment, so that proxies keep it open; 0: never.",
        0,
        3_600,
        default=15,
    )
    template: PodTemplate | None = struct(
        "More about engine pods; their containers are engine and sidecar.", default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """The desired state of a cluster."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.store.type != 'Memory' || self.controlPlane.replicas == 1",
            "controlPlane.replicas must be 1 with store.type Memory: replicas cannot share a table in memory",
            lambda s: s.store.type is not StoreType.MEMORY or s.control_plane.replicas == 1,
            "controlPlane.replicas",
        ),
        Rule(
            "!has(self.auth.clients) || self.auth.clients != 'Keys' || self.tls.issuer != 'None'",
            "auth.clients Keys needs spec.tls: keys must not travel in the clear, and parts show their certificates",
            lambda s: s.auth.clients is not ClientAuth.KEYS or s.tls.on,
            "auth.clients",
        ),
        Rule(
            "!self.tls.engines || !self.gateway.inferencePool.enabled",
            "tls.engines excludes gateway.inferencePool: gateways of others have no certificate that engines accept",
            lambda s: not (s.tls.engines and s.gateway.inference_pool.enabled),
            "tls.engines",
        ),
        Rule(
            "!self.tls.engines || self.engine.extraArgs.all(each, !each.startsWith('--ssl-'))",
            "engine.extraArgs may not contain --ssl- with tls.engines, which sets them",
            lambda s: not s.tls.engines or not any(each.startswith("--ssl-") for each in s.engine.extra_args),
            "engine.extraArgs",
        ),
        Rule(
            "self.engine.type == 'VLLM' || (size(self.model.alsoServedAs) == 0 && size(self.model.loraAdapters) == 0)",
            "model.alsoServedAs and model.loraAdapters go with engine.type VLLM only",
            lambda s: s.engine.type is EngineType.VLLM or not (s.model.also_served_as or s.model.lora_adapters),
            "model",
        ),
        Rule(
            "(!has(self.model.maxLoras) && !has(self.model.maxCpuLoras)) || "
            "!self.engine.extraArgs.exists(a, a.startsWith('--max-loras') || a.startsWith('--max-cpu-loras'))",
            "engine.extraArgs may not contain --max-loras or --max-cpu-loras where model.maxLoras or model.maxCpuLoras "
            "is set: give each once",
            lambda s: (s.model.max_loras is None and s.model.max_cpu_loras is None)
            or not any(each.startswith(("--max-loras", "--max-cpu-loras")) for each in s.engine.extra_args),
            "engine.extraArgs",
        ),
        Rule(
            "self.engine.nodes == 1 || self.model.cache.type != 'PersistentVolumeClaim'",
            "model.cache.type PersistentVolumeClaim goes with engine.nodes 1 only: such a volume is attached to one "
            "node. Use ExistingClaim, a volume that all nodes share, or EmptyDir",
            lambda s: s.engine.nodes == 1 or s.model.cache.type is not CacheType.CLAIM,
            "model.cache.type",
        ),
        Rule(
            "self.engine.type == 'VLLM' || !has(self.model.source)",
            "model.source goes with engine.type VLLM only: simulated engines have no model",
            lambda s: s.engine.type is EngineType.VLLM or s.model.source is None,
            "model.source",
        ),
        Rule(
            "self.engine.type == oldSelf.engine.type || self.model.cache.type != 'PersistentVolumeClaim'",
            "engine.type cannot be changed with model.cache.type PersistentVolumeClaim, because a StatefulSet's claims "
            "cannot: create a new AgentServingCluster",
            at="engine.type",
        ),
    )

    model: Model = struct("The model.")
    engine: Engine = struct("The engines that serve it.", default=Engine)
    scheduling: Scheduling = struct("Which call is served next.", default=Scheduling)
    control_plane: ControlPlane = struct("The control plane.", default=ControlPlane)
    gateway: Gateway = struct("The front that agents connect to.", default=Gateway)
    batches: Batches = struct("OpenAI's files and batches.", default=Batches)
    store: Store = struct("Where programs' accounts are stored.", default=Store)
    tls: Tls = struct("Certificates between the cluster's parts.", default=Tls)
    auth: Auth = struct("Who may use the cluster.", default=Auth)
    network: Network = struct("Which connections NetworkPolicies allow.", default=Network)
