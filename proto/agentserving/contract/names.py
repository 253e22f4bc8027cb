"""What certificates say where no address can be known before."""

from __future__ import annotations

# Of every sidecar: they are dialled by their pods' addresses, and each cluster has a CA of its own.
SIDECAR_NAME = "sidecar.agentserving.internal"
