"""Files, batches and lists as clients see them: OpenAI's objects. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agentserving_batches.values import ENDED, Batch, File, Problem, Status

Json = dict[str, object]

_TIMES = {
    Status.IN_PROGRESS: "in_progress_at",
    Status.FINALIZING: "finalizing_at",
    Status.COMPLETED: "completed_at",
    Status.FAILED: "failed_at",
    Status.EXPIRED: "expired_at",
    Status.CANCELLING: "cancelling_at",
    Status.CANCELLED: "cancelled_at",
}


def file_object(file: File) -> Json:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_s,
        "expires_at": file.expires_s,
        "filename": file.name,
        "purpose": file.purpose.value,
        "status": "processed",
    }


def batch_object(batch: Batch) -> Json:
    has_files = batch.status in ENDED
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": [_problem(each) for each in batch.problems]} if batch.problems else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.window,
        "status": batch.status.value,
        "output_file_id": (batch.output_file_id or None) if has_files else None,
        "error_file_id": (batch.error_file_id or None) if has_files else None,
        "created_at": batch.created_s,
        "expires_at": batch.expires_s,
        **{name: batch.entered_s.get(status) for status, name in _TIMES.items()},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": dict(batch.metadata) or None,
    }


def _problem(problem: Problem) -> Json:
    return {
        "code": problem.code,
        "message": problem.message,
        "line": problem.line or None,
        "param": problem.param or None,
    }


def list_object(items: Sequence[Json], *, has_more: bool) -> Json:
    """A page of a list, as OpenAI's SDKs iterate over it."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def deleted_object(file_id: str) -> Json:
    return {"id": file_id, "object": "file", "deleted": True}
