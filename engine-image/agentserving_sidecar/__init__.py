"""The sidecar of each engine."""

# Before anything imports structlog.
import agentserving_process  # noqa: F401
