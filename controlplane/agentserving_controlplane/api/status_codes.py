"""The one table from refusals to gRPC statuses."""

from __future__ import annotations

from typing import NoReturn

import grpc
from agentserving.contract.budgets import Budget, BudgetState
from agentserving.contract.rates import Rate
from agentserving.v1 import call_service_pb2, types_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from agentserving_controlplane import errors
from agentserving_controlplane.store.port import FencedError, StoreError

DOMAIN = "agentserving.io"
# Messages quote the client's input and are sent three times in headers of at most 8 KiB together.
MAX_MESSAGE_CHARS = 300

_CODES: dict[type[Exception], int] = {
    errors.NotFoundError: code_pb2.NOT_FOUND,
    errors.InvalidError: code_pb2.INVALID_ARGUMENT,
    errors.ConflictError: code_pb2.FAILED_PRECONDITION,
    errors.ForbiddenError: code_pb2.PERMISSION_DENIED,
    errors.NotAllowedError: code_pb2.PERMISSION_DENIED,
    errors.UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    errors.ExistsError: code_pb2.ALREADY_EXISTS,
    errors.OverloadedError: code_pb2.RESOURCE_EXHAUSTED,
    errors.BudgetSpentError: code_pb2.RESOURCE_EXHAUSTED,
    errors.UnavailableError: code_pb2.UNAVAILABLE,
    errors.NotLeaderError: code_pb2.UNAVAILABLE,
    errors.GoneError: code_pb2.OUT_OF_RANGE,
    errors.ReplacedError: code_pb2.ABORTED,
    errors.LateError: code_pb2.DEADLINE_EXCEEDED,
}


def as_domain_error(error: Exception) -> errors.DomainError:
    """Any exception as a refusal. A bug becomes INTERNAL without its text, which may contain secrets."""
    match error:
        case errors.DomainError():
            return error
        case DecodeError():
            return errors.InvalidError("MALFORMED_MESSAGE", "the request cannot be decoded as a message of this method")
        case FencedError():
            return errors.NotLeaderError("this control plane is no longer the leader")
        case StoreError():
            return errors.UnavailableError("STORE_UNAVAILABLE", str(error), retry_after_s=1.0)
        case _:
            return errors.DomainError("INTERNAL", f"internal error ({type(error).__name__})")


def code_of(error: errors.DomainError) -> int:
    """The google.rpc.Code of a refusal."""
    return int(_CODES.get(type(error), code_pb2.INTERNAL))


def _short(refusal: errors.DomainError) -> str:
    text = str(refusal)
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 3] + "..."


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:  # type: ignore[type-arg]
    """Ends an RPC with a status and ErrorInfo; with BadRequest and RetryInfo when the refusal has them."""
    refusal = as_domain_error(error)
    message = _short(refusal)
    status = status_pb2.Status(code=code_of(refusal), message=message)
    leader = refusal.leader if isinstance(refusal, errors.NotLeaderError) else ""
    metadata = {"leader": leader} if leader else {}
    details = [error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=metadata)]
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_after_s:
        delay = Duration()
        delay.FromMilliseconds(round(refusal.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


def admission_error(error: Exception) -> call_service_pb2.AdmissionError:
    """The same facts for one admission on a gateway's stream."""
    refusal = as_domain_error(error)
    message = call_service_pb2.AdmissionError(code=code_of(refusal), reason=refusal.reason, message=_short(refusal))
    if refusal.retry_after_s:
        message.retry_after.FromMilliseconds(round(refusal.retry_after_s * 1000))
    if isinstance(refusal, errors.OverloadedError):
        message.rates.extend(map(rate_to_message, refusal.rates))
    if isinstance(refusal, errors.BudgetSpentError):
        message.budget.CopyFrom(budget_to_message(refusal.budget))
    return message


def budget_to_message(state: BudgetState) -> types_pb2.BudgetState:
    """The limits of a tree's budget and what is spent, for clients."""
    return types_pb2.BudgetState(limit=_amounts(state.limit), spent=_amounts(state.spent))


def _amounts(budget: Budget) -> types_pb2.Budget:
    return types_pb2.Budget(tokens=budget.tokens, engine_us=budget.engine_us, calls=budget.calls)


def rate_to_message(rate: Rate) -> call_service_pb2.Rate:
    """What is left of one bound."""
    message = call_service_pb2.Rate(unit=rate.unit, limit=rate.limit, remaining=rate.remaining)
    message.reset.FromMilliseconds(round(rate.reset_s * 1000))
    return message
