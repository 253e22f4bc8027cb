"""Why an engine does not do with its KV what a policy says, and what that means for the user."""

from __future__ import annotations

from enum import StrEnum


class KvObstacle(StrEnum):
    """Fixed for one boot of an engine. A peer of another release may send a reason that is not here."""

    NO_PREFIX_CACHING = "no_prefix_caching"
    KV_CONNECTOR = "kv_connector"
    # Blocks that do not have one hash each: state space models, context parallelism.
    KV_LAYOUT = "kv_layout"
    SLIDING_WINDOWS = "sliding_windows"
    UNKNOWN_HOST_MEMORY = "unknown_host_memory"


_MEANINGS = {
    KvObstacle.NO_PREFIX_CACHING: "prefix caching is off, so no later call finds a context",
    KvObstacle.KV_CONNECTOR: "a KV connector loads what is evicted, so evicted contexts are not computed again",
    KvObstacle.KV_LAYOUT: "the KV of the model's layers (state space, or context parallel) is not found by blocks",
    KvObstacle.SLIDING_WINDOWS: "layers with sliding windows share the KV cache, so programs' footprints are not exact",
    KvObstacle.UNKNOWN_HOST_MEMORY: "the KV connector does not say how much memory it has",
}


def meaning(obstacle: str) -> str:
    """A clause for people."""
    return _MEANINGS[KvObstacle(obstacle)] if obstacle in set(KvObstacle) else obstacle
