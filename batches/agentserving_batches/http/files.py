"""/v1/files: upload, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from functools import partial

from aiohttp import web

from agentserving_batches.errors import RefusedError, no_file
from agentserving_batches.http.asker import ASKER
from agentserving_batches.http.audit import CREATED
from agentserving_batches.http.query import is_newest_first, limit_of
from agentserving_batches.http.upload import Uploads, read
from agentserving_batches.limits import Limits
from agentserving_batches.objects import deleted_object, file_object, list_object
from agentserving_batches.store import file_rows
from agentserving_batches.store.contents import Contents, new_file_id
from agentserving_batches.store.database import Database
from agentserving_batches.values import File, Purpose

# OpenAI's.
_PAGE, _MAX_PAGE = 10_000, 10_000


class Files:
    """Each handler acts for the tenant that asks. `now`: Unix time."""

    def __init__(
        self, database: Database, contents: Contents, limits: Limits, now: Callable[[], float] = time.time
    ) -> None:
        self._database, self._contents, self._limits, self._now = database, contents, limits, now
        self._uploads = Uploads()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/files", self.upload),
            web.get("/v1/files", self.list),
            web.get("/v1/files/{id}", self.retrieve),
            web.get("/v1/files/{id}/content", self.content),
            web.delete("/v1/files/{id}", self.delete),
        ]

    async def check_room(self, tenant: str) -> None:
        """RefusedError when the tenant, or the disk, has no room for more."""
        await self._database.run(partial(_check_usage, tenant=tenant, more_bytes=0, limits=self._limits))
        free = await asyncio.to_thread(self._contents.free_bytes)
        if free < self._limits.min_free_bytes:
            raise RefusedError(
                507, f"the disk of the batch service has {free} bytes left, and keeps {self._limits.min_free_bytes} "
                "for results of batches that run: delete files, or have its administrator add space",
                "no_space", type="server_error", retry_after_s=60,
            )  # fmt: skip

    async def upload(self, request: web.Request) -> web.Response:
        tenant = request[ASKER].tenant
        with self._uploads.one(tenant):
            await self.check_room(tenant)
            file_id = new_file_id()
            async with self._contents.writing(file_id) as into:
                name, size = await read(request, into, self._limits)
            now_s = int(self._now())
            file = File(
                file_id=file_id, tenant=tenant, name=name, purpose=Purpose.BATCH, size_bytes=size, created_s=now_s,
                expires_s=now_s + self._limits.keep_s,
            )  # fmt: skip
            try:
                await self._database.run(partial(_insert, file=file, limits=self._limits))
            except RefusedError:
                self._contents.delete(file_id)
                raise
        request[CREATED] = file_id
        return web.json_response(file_object(file))

    async def list(self, request: web.Request) -> web.Response:
        query = request.query
        limit = limit_of(query, _PAGE, _MAX_PAGE)
        page = partial(
            file_rows.page, tenant=request[ASKER].tenant, after=query.get("after", ""), limit=limit + 1,
            purpose=query.get("purpose", ""), newest_first=is_newest_first(query),
        )  # fmt: skip
        found = await self._database.run(page)
        return web.json_response(
            list_object([file_object(file) for file in found[:limit]], has_more=len(found) > limit)
        )

    async def retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(file_object(await self._file(request)))

    async def content(self, request: web.Request) -> web.StreamResponse:
        file = await self._file(request)
        path = self._contents.path(file.file_id)
        if not await asyncio.to_thread(path.exists):
            # Deleted since the row was read.
            raise no_file(file.file_id)
        return web.FileResponse(path, headers={"content-type": "application/octet-stream"})

    async def delete(self, request: web.Request) -> web.Response:
        file = await self._file(request)
        await self._database.run(partial(_delete, file_id=file.file_id))
        await asyncio.to_thread(self._contents.delete, file.file_id)
        return web.json_response(deleted_object(file.file_id))

    async def _file(self, request: web.Request) -> File:
        file_id = request.match_info["id"]
        found = await self._database.run(partial(file_rows.get, tenant=request[ASKER].tenant, file_id=file_id))
        if found is None:
            raise no_file(file_id)
        return found


def _check_usage(db: sqlite3.Connection, tenant: str, more_bytes: int, limits: Limits) -> None:
    files, size = file_rows.usage(db, tenant)
    if files >= limits.tenant_files or size + more_bytes > limits.tenant_bytes:
        raise RefusedError(
            413, f"this tenant has {files} files with {size} bytes, and may have {limits.tenant_files} with "
            f"{limits.tenant_bytes}: delete some (DELETE /v1/files/ID)",
            "quota_exceeded",
        )  # fmt: skip


def _insert(db: sqlite3.Connection, file: File, limits: Limits) -> None:
    """One transaction, so that uploads at the same time do not exceed the quota together."""
    _check_usage(db, file.tenant, file.size_bytes, limits)
    file_rows.insert(db, file)


def _delete(db: sqlite3.Connection, file_id: str) -> None:
    user = file_rows.user_of(db, file_id)
    if user:
        raise RefusedError(
            409,
            f"the file is the input of batch {user}, which has not ended: cancel that, or wait",
            "file_in_use",
            "file_id",
        )
    file_rows.delete(db, file_id)
