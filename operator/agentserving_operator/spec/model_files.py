"""The part of the spec about what is served with the model: a chat template and LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, text


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
