"""What every servicer does the same way: find the tenant, run the body, translate refusals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from agentserving_controlplane.api.status_codes import abort
from agentserving_controlplane.errors import DomainError, InvalidError, LateError
from agentserving_controlplane.store.port import StoreError

log = structlog.get_logger()
Request = TypeVar("Request")
Response = TypeVar("Response")

# For clients that set no deadline: a mutation that waits for the store gives up after this.
DEFAULT_DEADLINE_S = 30.0
LAST_WRITE_S = 1.0


# Part of keys in the store, beside NUL.
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_tenant(tenant: str) -> str:
    """The tenant. InvalidError for what cannot be one."""
    if _TENANT.fullmatch(tenant) is None:
        raise InvalidError("BAD_TENANT", "tenant: 1 to 64 of A-Z a-z 0-9 . _ -", field="tenant")
    return tenant


def tenant_of(context: Any) -> str:
    """From the credential's metadata, never from a body. InvalidError."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-agentserving-tenant" and value:
            return check_tenant(str(value))
    return "default"


def own_tenant(named: str, tenant: str) -> str:
    """The connection's tenant, which a body may name but not change. InvalidError."""
    if named and named != tenant:
        raise InvalidError("FOREIGN_TENANT", f"tenant: this connection is {tenant!r}'s", field="tenant")
    return tenant


class Outlet:
    """Writes of one stream, one at a time: grpc.aio takes no second one, nor a status, while one is on its way."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._writing = asyncio.Lock()

    async def write(self, message: object) -> None:
        """Waits while the client does not read."""
        async with self._writing:
            await self._context.write(message)

    async def close(self) -> None:
        """No more writes; before a status is sent. Does not wait for ever for a client that does not read."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._writing.acquire(), LAST_WRITE_S)


def unary(
    method: Callable[[Any, Request, str], Awaitable[Response]],
) -> Callable[[Any, Request, Any], Awaitable[Response]]:
    """A servicer method from one that takes (self, request, tenant) and raises domain errors."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Any) -> Response:
        try:
            return await asyncio.wait_for(method(self, request, tenant_of(context)), DEFAULT_DEADLINE_S)
        except TimeoutError:
            await abort(context, LateError("STORE_SLOW", "the store has not answered in time", retry_after_s=1.0))
        except (DomainError, StoreError) as error:
            await abort(context, error)
        except Exception as error:
            log.exception("servicer failed", method=method.__name__)
            await abort(context, error)

    return wrapped
