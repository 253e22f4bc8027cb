"""Subject names of certificates whose owners have no fixed address."""

from __future__ import annotations

# Shared by all sidecars: they are dialled by pod address, and each cluster has its own CA.
SIDECAR_NAME = "sidecar.agentserving.internal"
# Below it each engine has a name of its own, where gateways reach engines by TLS.
ENGINES_NAME = "engine.agentserving.internal"


def engine_name(engine_id: str) -> str:
    """The DNS name in an engine's certificate. Engines are dialled by address, which no certificate can contain."""
    return f"{engine_id}.{ENGINES_NAME}"
