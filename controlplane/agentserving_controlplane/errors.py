"""Refusals of the control plane. `api/status_codes.py` maps each class to one gRPC status.

DomainError
 +- NotFoundError       NOT_FOUND
 +- InvalidError        INVALID_ARGUMENT; `field` names the field
 +- ConflictError       FAILED_PRECONDITION
 +- ForbiddenError      PERMISSION_DENIED
 +- NotAllowedError     PERMISSION_DENIED; of the caller, not of the state
 +- UnauthenticatedError  UNAUTHENTICATED
 +- ExistsError         ALREADY_EXISTS
 +- OverloadedError     RESOURCE_EXHAUSTED; retry after `retry_after_s`
 |   +- BudgetSpentError `budget` is the tree's
 +- UnavailableError    UNAVAILABLE; retry after `retry_after_s`
 |   +- NotLeaderError  `leader` is the address to ask instead, when known
 +- GoneError           OUT_OF_RANGE
 +- ReplacedError       ABORTED
 +- LateError           DEADLINE_EXCEEDED
"""

from __future__ import annotations

from agentserving.contract.budgets import BudgetState
from agentserving.contract.rates import Rate


class DomainError(Exception):
    """Root of all refusals: `reason` is a closed word for programs, the message says what a person can do about it.

    `retry_after_s` is in seconds, 0 when a retry is pointless.
    """

    # Id of the key that was refused, if it is one of ours.
    credential = ""

    def __init__(self, reason: str, message: str, *, field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.field, self.retry_after_s = reason, field, retry_after_s


class NotFoundError(DomainError):
    """No such program, call or engine, or it belongs to another tenant."""


class InvalidError(DomainError):
    """A field has an impossible value."""


class ConflictError(DomainError):
    """The request is well formed, but the current state does not allow it."""


class ForbiddenError(DomainError):
    """The owner has cancelled this program: its calls are refused until it is opened again."""


class NotAllowedError(DomainError):
    """This caller may not do this, whatever the state: written to the audit log."""


class UnauthenticatedError(DomainError):
    """It is not known who the caller is."""

    def __init__(self, reason: str, message: str, *, credential: str = "") -> None:
        super().__init__(reason, message)
        self.credential = credential


class ExistsError(DomainError):
    """The id or the idempotency key is already in use for something else."""


class OverloadedError(DomainError):
    """A limit is reached. `rates`: what is left of the bounds in time, where it is one of those."""

    def __init__(self, reason: str, message: str, *, retry_after_s: float = 0.0, rates: tuple[Rate, ...] = ()) -> None:
        super().__init__(reason, message, retry_after_s=retry_after_s)
        self.rates = rates


class BudgetSpentError(OverloadedError):
    """A tree of programs has used up its budget: its calls are refused until something is added."""

    def __init__(self, reason: str, message: str, *, budget: BudgetState, retry_after_s: float = 0.0) -> None:
        super().__init__(reason, message, retry_after_s=retry_after_s)
        self.budget = budget


class UnavailableError(DomainError):
    """No engine, store or leader can serve the request now."""


class NotLeaderError(UnavailableError):
    """Another control plane leads, or none does; `leader` is its host:port or empty. Nothing was changed."""

    def __init__(self, message: str, leader: str = "") -> None:
        super().__init__("NOT_LEADER", message, retry_after_s=0.2)
        self.leader = leader


class GoneError(DomainError):
    """The requested revision is no longer in the history."""


class ReplacedError(DomainError):
    """The leader ended this stream, for example because a newer one replaced it; open another."""


class LateError(DomainError):
    """The change was applied, but the store did not confirm it within the deadline: it may or may not be durable."""
