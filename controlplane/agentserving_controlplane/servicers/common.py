"""What every servicer does the same way: find the tenant, run the body, translate refusals."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from agentserving_controlplane.errors import DomainError
from agentserving_controlplane.status_codes import abort
from agentserving_controlplane.store import StoreError

log = structlog.get_logger()
Request = TypeVar("Request")
Response = TypeVar("Response")

# For clients that set no deadline: a mutation that waits for the store gives up after this.
DEFAULT_DEADLINE_S = 30.0


def tenant_of(context: Any) -> str:
    """From the credential's metadata, never from a body."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-agentserving-tenant" and value:
            return str(value)
    return "default"


def unary(
    method: Callable[[Any, Request, str], Awaitable[Response]],
) -> Callable[[Any, Request, Any], Awaitable[Response]]:
    """A servicer method from one that takes (self, request, tenant) and raises domain errors."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Request, context: Any) -> Response:
        try:
            return await asyncio.wait_for(method(self, request, tenant_of(context)), DEFAULT_DEADLINE_S)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the store did not answer in time")
            raise
        except (DomainError, StoreError) as error:
            await abort(context, error)
        except Exception as error:
            log.exception("servicer failed", method=method.__name__)
            await abort(context, error)

    return wrapped
