"""An upload: multipart/form-data with the fields `purpose` and `file`, in any order, written as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from aiohttp import BodyPartReader, MultipartReader, web

from agentserving_batches.errors import RefusedError
from agentserving_batches.limits import MAX_FILE_NAME, TENANT_UPLOADS, UPLOADS, Limits
from agentserving_batches.values import Purpose

# Of a field that is not a file.
_MAX_FIELD_BYTES = 4096
_MAX_PARTS = 16
# What is written at a time.
_PIECE_BYTES = 1 << 20


class Uploads:
    """How many are on the way."""

    def __init__(self) -> None:
        self._of_tenant: dict[str, int] = {}

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Counts one. RefusedError 429."""
        own = self._of_tenant.get(tenant, 0)
        if own >= TENANT_UPLOADS or sum(self._of_tenant.values()) >= UPLOADS:
            group = "of this tenant" if own >= TENANT_UPLOADS else "of all tenants"
            raise RefusedError(
                429, f"too many uploads {group} at a time: try again in a moment", "too_many_uploads",
                type="rate_limit_error", retry_after_s=2,
            )  # fmt: skip
        self._of_tenant[tenant] = own + 1
        try:
            yield
        finally:
            left = self._of_tenant.pop(tenant) - 1
            if left:
                self._of_tenant[tenant] = left


def too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413,
        f"a file has at most {limits.max_file_bytes} bytes: split it into several batches",
        "file_too_large",
        "file",
    )


async def read(request: web.Request, into: IO[bytes], limits: Limits) -> tuple[str, int]:
    """Writes the file; gives its name and size in bytes. RefusedError says which field is wrong."""
    if not request.content_type.startswith("multipart/"):
        raise RefusedError(400, "send multipart/form-data with the fields purpose and file", "invalid_content_type")
    purpose, name, size = "", "", -1
    try:
        reader = await request.multipart()
        for _ in range(_MAX_PARTS):
            part = await reader.next()
            if part is None:
                break
            if isinstance(part, MultipartReader):
                raise RefusedError(400, "a field has parts of its own: send plain fields", "invalid_form")
            if part.name == "file":
                if size >= 0:
                    raise RefusedError(400, "file is there twice: send one file a request", "invalid_form", "file")
                name, size = (part.filename or "upload")[:MAX_FILE_NAME], await _write(part, into, limits)
            elif part.name == "purpose":
                purpose = (await _field(part)).decode("utf-8", "replace")
            else:
                await _field(part)
        else:
            raise RefusedError(400, f"more than {_MAX_PARTS} fields", "invalid_form")
    except (ValueError, AssertionError) as error:
        raise RefusedError(400, f"the form cannot be read: {error}", "invalid_form") from None
    if purpose != Purpose.BATCH:
        raise RefusedError(
            400,
            f"purpose is {purpose[:40]!r}: files are for batches here, so it must be 'batch'",
            "invalid_purpose",
            "purpose",
        )
    if size < 0:
        raise RefusedError(400, "file is missing", "missing_file", "file")
    if size == 0:
        raise RefusedError(400, "the file is empty: write one request a line", "empty_file", "file")
    return name, size


async def _write(part: BodyPartReader, into: IO[bytes], limits: Limits) -> int:
    size = 0
    while piece := await part.read_chunk(_PIECE_BYTES):
        size += len(piece)
        if size > limits.max_file_bytes:
            raise too_large(limits)
        await asyncio.to_thread(into.write, piece)
    return size


async def _field(part: BodyPartReader) -> bytes:
    content = b""
    while piece := await part.read_chunk(_MAX_FIELD_BYTES):
        content += piece
        if len(content) > _MAX_FIELD_BYTES:
            raise RefusedError(400, f"the field {str(part.name)[:40]!r} is too long", "invalid_form", part.name)
    return content
