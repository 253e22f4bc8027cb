"""Subject names of certificates whose owners have no fixed address."""

from __future__ import annotations

# Shared by all sidecars: they are dialled by pod address, and each cluster has its own CA.
SIDECAR_NAME = "sidecar.agentserving.internal"
# Of all engines, where gateways reach them by TLS.
ENGINE_NAME = "engine.agentserving.internal"
