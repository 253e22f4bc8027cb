"""What all servicers share: the tenant of a request, deadlines, and the translation of refusals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from agentserving.contract.identity import Caller, Role
from agentserving.contract.ids import Tenant
from google.protobuf.message import DecodeError

from agentserving_controlplane.api.authentication import Metadata, admitted
from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.errors import DomainError, ForbiddenError, InvalidError, LateError
from agentserving_controlplane.store.port import StoreError

log = structlog.get_logger()
Request = TypeVar("Request")
Response = TypeVar("Response")

# A mutation stops waiting for the store after this, also for clients that set no deadline.
DEFAULT_DEADLINE_S = 30.0

# Tenants are part of store keys, next to a NUL.
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
DEFAULT_TENANT = Tenant("default")
EXPECTED_ERRORS = (DomainError, StoreError, DecodeError)


def check_tenant(tenant: str) -> Tenant:
    """InvalidError for text that cannot name a tenant."""
    if _TENANT.fullmatch(tenant) is None:
        raise InvalidError("BAD_TENANT", "tenant: 1 to 64 of A-Z a-z 0-9 . _ -", field="tenant")
    return Tenant(tenant)


def tenant_of(context: Any) -> Tenant:
    """The tenant of an RPC: its credential's; a control plane without keys believes the metadata. InvalidError."""
    known = admitted()
    return known.tenant if known is not None else claimed_tenant(None, context.invocation_metadata() or ())


def claimed_tenant(caller: Caller | None, metadata: Metadata) -> Tenant:
    """The tenant that a caller may act for: clients for their own, others for the one in the metadata. DomainError."""
    claimed = next((str(value) for key, value in metadata if key == "x-agentserving-tenant" and value), "")
    if caller is None or caller.role is not Role.CLIENT:
        return check_tenant(claimed) if claimed else DEFAULT_TENANT
    if claimed and claimed != caller.tenant:
        raise ForbiddenError(
            "FOREIGN_TENANT", f"x-agentserving-tenant: this key belongs to tenant {caller.tenant!r}", field="tenant"
        )
    return caller.tenant


def own_tenant(named: str, tenant: Tenant) -> Tenant:
    """The connection's tenant; a message may repeat it but not name another. InvalidError."""
    if named and named != tenant:
        raise InvalidError("FOREIGN_TENANT", f"tenant: this connection belongs to {tenant!r}", field="tenant")
    return tenant


def gateway_tenant(named: str, default: Tenant | None) -> Tenant:
    """On a gateway's stream each message names the tenant of the gateway's client; it must where there is no default.

    InvalidError.
    """
    if not named and default is not None:
        return default
    return check_tenant(named)


async def end_with(context: Any, error: BaseException) -> NoReturn:
    """Ends an RPC with the status of an error; an unexpected one is logged and becomes INTERNAL."""
    if not isinstance(error, Exception) or isinstance(error, grpc.RpcError):
        # The client is gone, or the server is stopping: there is no one to send a status to.
        raise error
    if not isinstance(error, EXPECTED_ERRORS):
        log.error("servicer failed", error=type(error).__name__, exc_info=error)
    await abort(context, error)


def unary(
    method: Callable[[Any, Request, Tenant], Awaitable[Response]],
) -> Callable[[Any, Request, Any], Awaitable[Response]]:
    """Makes a servicer method of one that takes (self, request, tenant) and raises refusals."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Any) -> Response:
        try:
            async with asyncio.timeout(DEFAULT_DEADLINE_S):
                return await method(self, request, tenant_of(context))
        except TimeoutError:
            await abort(context, LateError("STORE_SLOW", "the store has not answered in time", retry_after_s=1.0))
        except Exception as error:
            await end_with(context, error)

    return wrapped


def server_stream(
    method: Callable[[Any, Request, Tenant], AsyncGenerator[Response, None]],
) -> Callable[[Any, Request, Any], AsyncIterator[Response]]:
    """The same for a method that yields responses."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Any) -> AsyncIterator[Response]:
        try:
            # Closed with the RPC, not when it is garbage-collected: it is registered as a listener.
            async with contextlib.aclosing(method(self, request, tenant_of(context))) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await end_with(context, error)

    return wrapped
