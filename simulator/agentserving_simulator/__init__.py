"""An engine without a model, in real time: the production policy and channel over a cost model."""

# Before anything imports structlog.
import agentserving_process  # noqa: F401
