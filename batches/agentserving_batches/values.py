"""Files, batches and lines as the store has them. Pure. Times are Unix seconds; 0 = not yet."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Status(enum.StrEnum):
    """Of a batch, in OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})


class Purpose(enum.StrEnum):
    """Of a file: what clients upload, and what batches write."""

    BATCH = "batch"
    OUTPUT = "batch_output"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """Of one tenant; the content is in the directory of files, under the id."""

    file_id: str
    tenant: str
    name: str
    purpose: Purpose
    size_bytes: int
    created_s: int
    # It may be deleted from then on.
    expires_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Of an input file. `line`: from 1; 0 = of the file as a whole. `param`: the field; empty = none."""

    code: str
    message: str
    line: int = 0
    param: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Of one tenant.

    `grant`: with which its calls are made; empty once it has ended. `ending`: what FINALIZING and CANCELLING lead to.
    `total`, `completed`, `failed`: lines. `entered_s`: when it came into each state.
    """

    batch_id: str
    tenant: str
    status: Status
    endpoint: str
    window: str
    input_file_id: str
    created_s: int
    expires_s: int
    grant: str = ""
    ending: Status = Status.COMPLETED
    output_file_id: str = ""
    error_file_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    entered_s: Mapping[Status, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request of a batch: where it stands in the input file. `number`: from 1."""

    number: int
    custom_id: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """`text`: one line of JSON, of the output file if `succeeded`, else of the error file."""

    number: int
    text: bytes
    succeeded: bool
