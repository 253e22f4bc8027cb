"""Refusals in OpenAI's envelope. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class RefusedError(Exception):
    """The answer to a refused request: what happened, which field, and what to do. `type` is OpenAI's word."""

    status: int
    message: str
    code: str
    param: str | None = None
    type: str = "invalid_request_error"
    retry_after_s: int = 0

    @property
    def envelope(self) -> dict[str, object]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def no_file(file_id: str) -> RefusedError:
    """The same for a file that is not there and for another tenant's."""
    return RefusedError(404, f"there is no file {file_id[:100]!r}: GET /v1/files lists yours", "not_found", "file_id")


def no_batch(batch_id: str) -> RefusedError:
    """The same for a batch that is not there and for another tenant's."""
    return RefusedError(
        404, f"there is no batch {batch_id[:100]!r}: GET /v1/batches lists yours", "not_found", "batch_id"
    )
