"""The control plane."""

# Before anything imports structlog.
import agentserving_process  # noqa: F401
