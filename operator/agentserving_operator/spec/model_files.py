"""The part of the spec about the model's files: where they come from, a chat template and LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, Rule, choice, struct, text


class PullPolicy(StrEnum):
    """As in Kubernetes."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigMapKey:
    """A value in a ConfigMap of the same namespace."""

    config_map_name: str = text("Name of the ConfigMap.", 253, min_length=1, pattern=DNS_SUBDOMAIN)
    key: str = text("Key in the ConfigMap.", 253, default="template.jinja", min_length=1, pattern=r"^[-._a-zA-Z0-9]+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """A LoRA adapter that every engine loads."""

    name: str = text("Name by which clients ask for it.", 256, min_length=1, pattern=r"^[a-zA-Z0-9][-_./a-zA-Z0-9]*$")
    source: str = text(
        "Hugging Face name, or a path in the engine's container.", 1_024, min_length=1, pattern=r"^[^\s=-][^\s=]*$"
    )


# Rules of `spec.model`: places for adapters fit the list of them, and each other.
ADAPTER_PLACES = (
    Rule(
        "!has(self.maxLoras) || self.maxLoras <= size(self.loraAdapters)",
        "maxLoras is at most the number of loraAdapters: each place takes memory of the devices. For adapters that are "
        "loaded later give engine.extraArgs --max-loras",
        lambda m: m.max_loras is None or m.max_loras <= len(m.lora_adapters),
        "maxLoras",
    ),
    Rule(
        "!has(self.maxCpuLoras) || self.maxCpuLoras <= size(self.loraAdapters)",
        "maxCpuLoras is at most the number of loraAdapters. For adapters that are loaded later give engine.extraArgs "
        "--max-cpu-loras",
        lambda m: m.max_cpu_loras is None or m.max_cpu_loras <= len(m.lora_adapters),
        "maxCpuLoras",
    ),
    Rule(
        "!has(self.maxCpuLoras) || self.maxCpuLoras >= (has(self.maxLoras) ? self.maxLoras : 1)",
        "maxCpuLoras must be at least maxLoras: what a step computes with is in host memory, too",
        lambda m: m.max_cpu_loras is None or m.max_cpu_loras >= (m.max_loras or 1),
        "maxCpuLoras",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """An OCI image or artifact that is mounted as a volume."""

    reference: str = text(
        "Name of the image, best with its digest.", 512, min_length=1, pattern=r"^[a-zA-Z0-9][-a-zA-Z0-9._/:@]*$"
    )
    pull_policy: PullPolicy = choice("When the kubelet pulls it.", default=PullPolicy.IF_NOT_PRESENT)
    path: str | None = text(
        "Directory in the image that has config.json; absent: its root.",
        1_024,
        default=None,
        min_length=1,
        pattern=r"^[-_a-zA-Z0-9][-._a-zA-Z0-9]*(/[-_a-zA-Z0-9][-._a-zA-Z0-9]*)*$",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Source:
    """Objects in S3, or in a server that speaks its protocol."""

    uri: str = text(
        "s3://bucket/prefix, the directory that has config.json. It names one version of the model: what is in the "
        "cache is not compared with the bucket.",
        1_024,
        min_length=1,
        pattern=r"^s3://[a-z0-9][-.a-z0-9]+[a-z0-9](/[^\s/?#]+)*/?$",
    )
    endpoint: str | None = text(
        "URL of a server that is not AWS's, such as https://minio.example.com:9000.",
        512, default=None, min_length=1, pattern=r"^https?://[^\s/?#]+/?$",
    )  # fmt: skip
    region: str | None = text(
        "The bucket's region; absent: us-east-1.", 64, default=None, min_length=1, pattern=r"^[-a-z0-9]+$"
    )
    secret_name: str | None = text(
        "Secret whose keys are the variables that AWS's tools read: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
        "Absent: the identity of the pod's service account.",
        253, default=None, min_length=1, pattern=DNS_SUBDOMAIN,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSource:
    """Where the model's files come from, when that is not the Hugging Face Hub."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.image) != has(self.s3)",
            "exactly one of image and s3 is needed",
            lambda s: (s.image is None) != (s.s3 is None),
        ),
    )

    image: ImageSource | None = struct(
        "An OCI image with the files, mounted as a volume: Kubernetes 1.35, or 1.33 with the feature gate ImageVolume.",
        default=None,
    )
    s3: S3Source | None = struct(
        "Objects that an init container downloads into the cache's volume, once for each version.", default=None
    )
