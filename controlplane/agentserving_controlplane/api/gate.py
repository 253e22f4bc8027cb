"""Admits RPCs only while this process is the leader; otherwise rejects them with NOT_LEADER and the leader's address.

A process passes the gate once. One that stops leading does not become a follower: it restarts itself (`__main__`), so
that no state of its leadership is left.
"""

from __future__ import annotations

from typing import Any

import grpc
from agentserving_process.malformed import tolerant
from google.protobuf.message import DecodeError

from agentserving_controlplane.api.guard import Guard
from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.errors import NotLeaderError

PACKAGE = "/agentserving."


class Services:
    """Collects the handlers that generated code would register with a server."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Called by generated code."""
        self.handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Called by generated code with the same handlers."""


async def _refuse_malformed(context: Any) -> None:
    await abort(context, DecodeError())


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """Closed until `open`. `leader` is the address of the leader while another process leads, or empty."""

    def __init__(self) -> None:
        self.leader = ""
        self._services: Services | None = None
        self._guard: Guard | None = None
        self._handlers: dict[str, Any] = {}
        self._refusal: Any = grpc.stream_stream_rpc_method_handler(self._refuse)

    def open(self, services: Services, guard: Guard | None = None) -> None:
        """Admits RPCs to the services, behind a guard if there is one: this process leads."""
        self._services, self._guard, self._handlers = services, guard, {}

    def close(self) -> None:
        """Rejects new RPCs; the server ends those under way."""
        self._services, self.leader = None, ""

    def service(self, handler_call_details: Any) -> Any:
        """Called by gRPC for each RPC."""
        if self._services is None:
            # Fits every kind of method: nothing is read, and the refusal is a status.
            return self._refusal if handler_call_details.method.startswith(PACKAGE) else None
        path = handler_call_details.method
        known = self._handlers.get(path)
        if known is not None:
            return known
        for handler in self._services.handlers:
            found = handler.service(handler_call_details)
            if found is not None:
                made = tolerant(found, _refuse_malformed)
                made = self._handlers[path] = made if self._guard is None else self._guard.wrap(path, made)
                return made
        return None

    async def _refuse(self, requests: Any, context: Any) -> None:
        hint = f"the leader is {self.leader}" if self.leader else "there is no leader at the moment"
        await abort(context, NotLeaderError(f"this control plane is not the leader: {hint}", self.leader))
