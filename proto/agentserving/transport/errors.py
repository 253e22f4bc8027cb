"""Errors between a client and agentserving, and how a gRPC status becomes one of them.

AgentServingError               reason (a closed word for programs), message (which field or object, what to do)
 ├── NotFoundError              no such program, call or engine, or not for this tenant
 ├── InvalidArgumentError       `field` names the field
 ├── ConflictError              well-formed, but impossible in this state: closed program, other policy version
 │    └── AlreadyExistsError    the id or the idempotency key is already in use
 ├── GoneError                  the revision has been compacted: list again
 ├── OverloadedError            a limit is reached; retry after `retry_after_s`
 ├── UnavailableError           nothing can serve this now; retry after `retry_after_s`
 ├── DeadlineExceededError      no response in time; the operation may have taken effect
 ├── PermissionDeniedError      no credential, or an insufficient one
 ├── CancelledError             the call was cancelled, by the client or by the control plane
 └── InternalError              a bug in agentserving, or a response that makes no sense

Each is built from the google.rpc.Status that the server sent (ErrorInfo, BadRequest, RetryInfo) and has the gRPC error
as its `__cause__`.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from agentserving.transport.leader import is_address

NOT_LEADER = "NOT_LEADER"


class AgentServingError(Exception):
    """Root. `reason` is a word like PROGRAM_NOT_FOUND; empty when the server sent none."""

    def __init__(self, message: str, *, reason: str = "", field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.field, self.retry_after_s = reason, field, retry_after_s
        # With reason NOT_LEADER: host:port of the leader; empty while there is none.
        self.leader = ""


class NotFoundError(AgentServingError):
    """No such program, call or engine, or not for this tenant."""


class InvalidArgumentError(AgentServingError):
    """An invalid value; `field` names it."""


class ConflictError(AgentServingError):
    """Well-formed, but impossible in the current state."""


class AlreadyExistsError(ConflictError):
    """The id or the idempotency key is already in use."""


class GoneError(AgentServingError):
    """The revision has been compacted; list again."""


class OverloadedError(AgentServingError):
    """A limit is reached; retry after `retry_after_s` seconds (0 = unspecified)."""


class UnavailableError(AgentServingError):
    """Nothing can serve this now; retry after `retry_after_s` seconds (0 = unspecified)."""


class DeadlineExceededError(AgentServingError):
    """No response in time; the operation may have taken effect."""


class PermissionDeniedError(AgentServingError):
    """No credential, or an insufficient one."""


class CancelledError(AgentServingError):
    """Cancelled before it completed."""


class InternalError(AgentServingError):
    """A bug in agentserving, or a response that makes no sense."""


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
    """A gRPC error, sync or async, as one of ours, with the original as its cause. Never raises.

    Whatever a server or a proxy on the way put into the status, its message or its trailers is data, not an exception.
    """
    if isinstance(error, AgentServingError):
        return error
    code, text = _status(error)
    reason, field, retry_after_s, leader = "", "", 0.0, ""
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason, leader = detail.reason, detail.metadata.get("leader", "")
        elif isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            field = detail.field_violations[0].field
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_s = max(0.0, detail.retry_delay.ToMilliseconds() / 1000)
    kind = InternalError if code is None else _BY_CODE.get(code, InternalError)
    translated = kind(f"{address}: {text}", reason=reason, field=field, retry_after_s=retry_after_s)
    translated.leader, translated.__cause__ = leader if is_address(leader) else "", error
    return translated


def decoded(message: Any, address: str) -> Any:
    """The message, as grpc.aio delivers it. InternalError for None: so it delivers bytes that it cannot decode."""
    if message is None:
        raise InternalError(f"{address}: the response cannot be decoded")
    return message


def hint_of(error: AgentServingError) -> str | None:
    """The leader that a follower names, "" when it knows of none; None for any other error."""
    return error.leader if error.reason == NOT_LEADER else None


def _status(error: Any) -> tuple[grpc.StatusCode | None, str]:
    """Code and message. An error raised before there was a call (a closed channel) has neither."""
    code = error.code() if callable(getattr(error, "code", None)) else None
    details = error.details() if callable(getattr(error, "details", None)) else str(error)
    if not isinstance(code, grpc.StatusCode):
        return None, str(details or type(error).__name__)
    return code, str(details or code.name)


def _details(call: Any) -> list[Any]:
    """The messages in grpc-status-details-bin that we know; those that cannot be decoded are left out."""
    try:
        status = rpc_status.from_call(call)
    except Exception:
        # DecodeError for garbage, ValueError for a status that contradicts the call's: a peer can cause either, and
        # neither may replace the error that is being reported.
        return []
    found = []
    for packed in status.details if status is not None else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            try:
                if packed.Unpack(message):
                    found.append(message)
            except DecodeError:
                continue
    return found
