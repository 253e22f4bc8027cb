"""What can go wrong between a client and agentserving.

AgentServingError             reason (a closed word for machines), message (which field or object, what to do)
 +- NotFoundError             no such program, call or engine, or not for this tenant
 +- InvalidArgumentError      `field` names the field
 +- ConflictError             right in form, wrong in this state: closed program, other policy version
 |   +- AlreadyExistsError    the id or the idempotency key is taken by something else
 +- GoneError                 a revision that is no longer kept: list again
 +- OverloadedError           a limit is reached; try again after `retry_after_s`
 +- UnavailableError          nobody can serve this now; try again after `retry_after_s`
 +- DeadlineExceededError     no answer in time; it may have been done all the same
 +- PermissionDeniedError     no credential, or not a good enough one
 +- CancelledError            the call was cut off, by us or by the control plane
 +- InternalError             a bug of ours, or an answer that makes no sense

Each is made from the google.rpc.Status that the server sent (ErrorInfo, BadRequest, RetryInfo) and keeps the gRPC error
as its `__cause__`.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

NOT_LEADER = "NOT_LEADER"


class AgentServingError(Exception):
    """Root. `reason` is a word like PROGRAM_NOT_FOUND; empty when the server gave none."""

    def __init__(self, message: str, *, reason: str = "", field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.field, self.retry_after_s = reason, field, retry_after_s
        # Of reason NOT_LEADER: host:port of the control plane that leads; empty while nobody knows.
        self.leader = ""


class NotFoundError(AgentServingError):
    """No such program, call or engine, or not for this tenant."""


class InvalidArgumentError(AgentServingError):
    """A value that makes no sense; `field` names it."""


class ConflictError(AgentServingError):
    """Right in form, wrong in this state."""


class AlreadyExistsError(ConflictError):
    """The id or the idempotency key is taken by something else."""


class GoneError(AgentServingError):
    """A revision that is no longer kept."""


class OverloadedError(AgentServingError):
    """A limit is reached; try again after `retry_after_s` seconds (0 = not told)."""


class UnavailableError(AgentServingError):
    """Nobody can serve this now; try again after `retry_after_s` seconds (0 = not told)."""


class DeadlineExceededError(AgentServingError):
    """No answer in time; it may have been done all the same."""


class PermissionDeniedError(AgentServingError):
    """No credential, or not a good enough one."""


class CancelledError(AgentServingError):
    """Cut off before its end."""


class InternalError(AgentServingError):
    """A bug of ours."""


_BY_CODE: dict[grpc.StatusCode, type[AgentServingError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.OUT_OF_RANGE: GoneError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDeniedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.CANCELLED: CancelledError,
}


def from_rpc(error: grpc.RpcError | AgentServingError, address: str) -> AgentServingError:
    """What a gRPC error, sync or async, says, with the original as its cause; one of ours is itself."""
    if isinstance(error, AgentServingError):
        return error
    call: Any = error
    code: grpc.StatusCode = call.code()
    reason, field, retry_after_s, leader = "", "", 0.0, ""
    for detail in _details(call):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason, leader = detail.reason, detail.metadata.get("leader", "")
        elif isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            field = detail.field_violations[0].field
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_s = detail.retry_delay.ToMilliseconds() / 1000
    kind = _BY_CODE.get(code, InternalError)
    told = kind(f"{address}: {call.details() or code.name}", reason=reason, field=field, retry_after_s=retry_after_s)
    told.leader, told.__cause__ = leader, error
    return told


def hint_of(error: AgentServingError) -> str | None:
    """Whom a control plane that does not lead names, "" when it knows of nobody; None for any other error."""
    return error.leader if error.reason == NOT_LEADER else None


def _details(call: Any) -> list[Any]:
    """The messages in grpc-status-details-bin that we know; none when there is no such trailer, or a broken one."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        return []
    found = []
    for packed in status.details if status is not None else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if packed.Unpack(message):
                found.append(message)
    return found
