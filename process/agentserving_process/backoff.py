"""`Backoff` for processes; its home is the client's transport, which retries as well."""

from agentserving.transport.backoff import Backoff

__all__ = ["Backoff"]
