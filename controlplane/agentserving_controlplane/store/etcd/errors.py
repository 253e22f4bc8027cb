"""etcd's errors as those of the Store port.

EndpointError           no usable answer of one endpoint: ask another one, or this one later
CompactedError          the revision to read has been compacted
LeaseNotFoundError      the lease has expired or was revoked
StoreFullError, RejectedWriteError, StoreUnavailableError   see the port
"""

from __future__ import annotations

import asyncio

import grpc

from agentserving_controlplane.store.port import (
    RejectedWriteError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

# The call may have been executed, or not.
_AMBIGUOUS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
# Messages of etcd (api/v3rpc/rpctypes/error.go) and of gRPC; their codes alone are ambiguous.
_FULL = "database space exceeded"
_BUSY = "too many requests"
_REJECTED = (
    "request is too large",
    "too many operations in txn request",
    "duplicate key given in txn request",
    "larger than max",
)


class EndpointError(StoreError):
    """One endpoint gives no usable answer."""


class CompactedError(StoreError):
    """The revision has been compacted."""


class LeaseNotFoundError(StoreError):
    """The lease does not exist any more."""


def translate(name: str, error: grpc.aio.AioRpcError) -> StoreError:
    """The error of a call, by its method's name."""
    code, details = error.code(), error.details() or ""
    text = f"{code.name} {details}"
    if code in _AMBIGUOUS or _BUSY in details:
        return EndpointError(text)
    if _FULL in details:
        return StoreFullError(f"etcd {name}: {details}")
    if any(each in details for each in _REJECTED):
        return RejectedWriteError(f"etcd {name}: {details}")
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return CompactedError(details)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in details:
        return LeaseNotFoundError(details)
    # Authentication, a proxy that knows no such method: an administrator can repair it while we wait.
    return StoreUnavailableError(f"etcd {name}: {text}")


def is_own_cancellation() -> bool:
    """True when a CancelledError was requested of this task, False when a library raised it."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
