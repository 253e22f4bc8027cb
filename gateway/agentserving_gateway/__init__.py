"""The front: Envoy and the picker."""

# Before anything imports structlog.
import agentserving_process  # noqa: F401
