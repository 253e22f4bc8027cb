"""What all servicers share: the tenant of a request, deadlines, and the translation of refusals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from agentserving.contract.ids import Tenant
from google.protobuf.message import DecodeError

from agentserving_controlplane.api.authentication import admitted, check_tenant, claimed_tenant
from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.errors import DomainError, InvalidError, LateError
from agentserving_controlplane.store.port import StoreError

log = structlog.get_logger()
Request = TypeVar("Request")
Response = TypeVar("Response")

# A mutation stops waiting for the store after this, also for clients that set no deadline.
DEFAULT_DEADLINE_S = 30.0

EXPECTED_ERRORS = (DomainError, StoreError, DecodeError)


def tenant_of(context: Any) -> Tenant:
    """The tenant of an RPC: its credential's; a control plane without keys believes the metadata. InvalidError."""
    known = admitted()
    return known.tenant if known is not None else claimed_tenant(None, context.invocation_metadata() or ())


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
