"""What stands before the services: they are there while this process leads, and else every call is told who does.

A process goes through this gate once. One that has stopped leading does not come back as a follower: it starts anew
(`__main__`), so that nothing of what it knew is left.
"""

from __future__ import annotations

from typing import Any

import grpc

from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.errors import NotLeaderError

PACKAGE = "/agentserving."


class Services:
    """Stands where generated code wants a server, and keeps the handlers."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code."""
        self.handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Called by generated code: the same handlers again."""


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """Closed until `open`; `leader` is who leads meanwhile, as far as is known."""

    def __init__(self) -> None:
        self.leader = ""
        self._services: Services | None = None
        self._refusal: Any = grpc.stream_stream_rpc_method_handler(self._refuse)

    def open(self, services: Services) -> None:
        """This process leads."""
        self._services = services

    def close(self) -> None:
        """It does not any more; calls under way are for the server to end."""
        self._services, self.leader = None, ""

    def service(self, handler_call_details: Any) -> Any:
        """See gRPC."""
        if self._services is None:
            # Whatever the method's kind: nothing is read, and the refusal is a status.
            return self._refusal if handler_call_details.method.startswith(PACKAGE) else None
        for handler in self._services.handlers:
            found = handler.service(handler_call_details)
            if found is not None:
                return found
        return None

    async def _refuse(self, requests: Any, context: Any) -> None:
        told = f"the leader is {self.leader}" if self.leader else "there is no leader just now"
        await abort(context, NotLeaderError(f"this control plane does not lead: {told}", self.leader))
