"""Errors of the API server, as the rest of the operator sees them.

ApiError                    anything that went wrong with a request
├── RefusedError            the API server refused it: repeating it changes nothing
│   └── ConflictError       the object was changed since it was read
├── UnavailableError        no response, or one that asks to try again later
└── WatchExpiredError       a watch must list again
"""

from __future__ import annotations


class ApiError(Exception):
    """Root of the errors below; its message is the API server's."""


class RefusedError(ApiError):
    """The API server refused. `status` is HTTP's, `reason` is Kubernetes' word for it (Invalid, Forbidden, ...)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class ConflictError(RefusedError):
    """The object was changed since it was read: read it again and decide anew."""


class UnavailableError(ApiError):
    """No response, or one that asks to try again later."""


class WatchExpiredError(ApiError):
    """The resource version of a watch is too old: list again."""
