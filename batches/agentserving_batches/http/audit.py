"""The audit log's lines about files and batches: each change, whatever came of it, and requests of no gateway.

Changes are not bounded: only callers with a credential can make them. Never names or contents of files.
"""

from __future__ import annotations

import time

from agentserving.contract.grant import Grant
from agentserving_process import audit
from aiohttp import web

# Handlers that create something put its id here.
CREATED = web.RequestKey("created", str)

_CHANGES = ("POST", "DELETE")
_OUTCOMES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}


class AuditLog:
    """One per process."""

    def __init__(self) -> None:
        self._refusals = audit.Refusals(time.monotonic())

    def changed(self, request: web.Request, asker: Grant, status: int = 200, reason: str = "") -> None:
        """A request was served, or refused after its asker was known; those that change nothing are left out."""
        if request.method not in _CHANGES:
            return
        created = request.get(CREATED, request.match_info.get("id", ""))
        said = {"reason": reason} if reason else {}
        audit.changed(
            role="client", who=asker.credential, tenant=asker.tenant, method=_method_of(request),
            about=f"{_kind_of(request)}/{created}" if created else "",
            outcome="OK" if status < 400 else _OUTCOMES.get(status, "INTERNAL"), **said,
        )  # fmt: skip

    def refused(self, request: web.Request, reason: str) -> None:
        """Who asked could not be verified."""
        self._refusals.refused(
            time.monotonic(), outcome="UNAUTHENTICATED", reason=reason, role="gateway", peer=request.remote or "",
            method=_method_of(request),
        )  # fmt: skip


def _method_of(request: web.Request) -> str:
    """The verb and the route, such as `DELETE /v1/files/{id}`; paths that are served by none are of any length."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical if resource is not None else ''}".strip()


def _kind_of(request: web.Request) -> str:
    return "batch" if "/batches" in _method_of(request) else "file"
