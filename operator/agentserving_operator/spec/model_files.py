"""The part of the spec about what is served with the model: a chat template and LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, Rule, text


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
