"""What the control plane refuses, and why.

DomainError            code, reason (a closed word for machines), message (for people: which field, what to do)
 +- NotFoundError
 +- InvalidError        `field` names the field
 +- ConflictError       the state of things does not allow it
 +- ExistsError
 +- OverloadedError     try again after `retry_after_s`
 +- UnavailableError    try again after `retry_after_s`
 |   +- NotLeaderError  ask `leader`, where one is known
 +- GoneError           a revision that is no longer kept
 +- ReplacedError       a stream that another has taken the place of
 +- LateError           no answer of the store within the time a call may take
"""

from __future__ import annotations


class DomainError(Exception):
    """Root: every refusal has a reason that a program can match and a message that a person can act on."""

    def __init__(self, reason: str, message: str, *, field: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.field, self.retry_after_s = reason, field, retry_after_s


class NotFoundError(DomainError):
    """No such program, call or engine, or not for this tenant."""


class InvalidError(DomainError):
    """A field that makes no sense."""


class ConflictError(DomainError):
    """Right in form, wrong in this state."""


class ExistsError(DomainError):
    """The id or the idempotency key is taken by something else."""


class OverloadedError(DomainError):
    """A limit is reached."""


class UnavailableError(DomainError):
    """Nothing can serve this now."""


class NotLeaderError(UnavailableError):
    """Another control plane leads, or none; `leader` is its host:port, empty while nobody knows. Nothing was done."""

    def __init__(self, message: str, leader: str = "") -> None:
        super().__init__("NOT_LEADER", message, retry_after_s=0.2)
        self.leader = leader


class GoneError(DomainError):
    """A revision that has been compacted."""


class ReplacedError(DomainError):
    """The stream ends for another's sake; open a new one."""


class LateError(DomainError):
    """The change has been made and will be durable, or not, later than the caller could wait."""
