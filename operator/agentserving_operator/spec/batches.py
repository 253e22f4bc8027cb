"""OpenAI's files and batches: `spec.batches`."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_operator.spec.fields import DNS_SUBDOMAIN, flag, quantity, struct, text
from agentserving_operator.spec.parts import Resources

DEFAULT_SIZE = "20Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """OpenAI's files and batches, with their queue on a volume."""

    enabled: bool = flag(
        "Runs the batch service; clients need keys with it. False deletes its volume, with all files and batches.",
        default=False,
    )
    size: str = quantity("Size of its volume. Cannot be changed while it runs.", default=DEFAULT_SIZE)
    storage_class_name: str | None = text(
        "Absent: the default StorageClass. Cannot be changed while it runs.", 253, default=None, pattern=DNS_SUBDOMAIN
    )
    resources: Resources = struct("Requests and limits of the batch service.", default=Resources)
