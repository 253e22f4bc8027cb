"""/v1/batches: create, list, retrieve, cancel."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from aiohttp import web

from agentserving_batches.errors import RefusedError, no_batch, no_file
from agentserving_batches.http.asker import ASKER, GRANT_TEXT
from agentserving_batches.http.audit import CREATED
from agentserving_batches.http.query import limit_of
from agentserving_batches.limits import MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE, Limits
from agentserving_batches.lines import ENDPOINTS
from agentserving_batches.objects import batch_object, list_object
from agentserving_batches.store import batch_rows, file_rows
from agentserving_batches.store.contents import new_batch_id
from agentserving_batches.store.database import Database
from agentserving_batches.values import ENDED, Batch, Purpose, Status
from agentserving_batches.work.runner import Runner

# OpenAI's.
_PAGE, _MAX_PAGE = 20, 100
_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_MAX_WINDOW_S = 24 * 3600
_WINDOW = re.compile(r"([1-9][0-9]{0,5})([smh])")


class _Create(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(_Create)


class Batches:
    """Each handler acts for the tenant that asks. `now`: Unix time."""

    def __init__(
        self, database: Database, runner: Runner, limits: Limits, check_room: Callable[[str], Awaitable[None]],
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`check_room`: RefusedError when a tenant's results would have no room."""
        self._database, self._runner, self._limits, self._now = database, runner, limits, now
        self._check_room = check_room

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/batches", self.create),
            web.get("/v1/batches", self.list),
            web.get("/v1/batches/{id}", self.retrieve),
            web.post("/v1/batches/{id}/cancel", self.cancel),
        ]

    async def create(self, request: web.Request) -> web.Response:
        asker = request[ASKER]
        asked = _read(await request.read())
        window_s = _window_s(asked.completion_window)
        await self._check_room(asker.tenant)
        now_s = int(self._now())
        batch = Batch(
            batch_id=new_batch_id(),
            tenant=asker.tenant,
            status=Status.VALIDATING,
            endpoint=asked.endpoint,
            window=asked.completion_window,
            input_file_id=asked.input_file_id,
            # Without keys there is nothing that it would open.
            grant=request[GRANT_TEXT] if asker.may_call and asker.credential else "",
            created_s=now_s,
            expires_s=now_s + window_s,
            metadata=asked.metadata or {},
        )
        await self._database.run(partial(_create, batch=batch, limits=self._limits))
        request[CREATED] = batch.batch_id
        self._runner.created(batch.batch_id)
        return web.json_response(batch_object(batch))

    async def list(self, request: web.Request) -> web.Response:
        limit = limit_of(request.query, _PAGE, _MAX_PAGE)
        page = partial(
            batch_rows.page, tenant=request[ASKER].tenant, after=request.query.get("after", ""), limit=limit + 1
        )
        found = await self._database.run(page)
        return web.json_response(
            list_object([batch_object(batch) for batch in found[:limit]], has_more=len(found) > limit)
        )

    async def retrieve(self, request: web.Request) -> web.Response:
        return web.json_response(batch_object(await self._batch(request)))

    async def cancel(self, request: web.Request) -> web.Response:
        batch = await self._batch(request)
        enter = partial(
            batch_rows.enter, batch_id=batch.batch_id, status=Status.CANCELLING, now_s=int(self._now()),
            of=[Status.VALIDATING, Status.IN_PROGRESS], ending=Status.CANCELLED,
        )  # fmt: skip
        if await self._database.run(enter):
            self._runner.cancelled(batch.batch_id)
        batch = await self._batch(request)
        if batch.status in ENDED - {Status.CANCELLED}:
            raise RefusedError(
                409,
                f"batch {batch.batch_id} is {batch.status.value}: one that has ended cannot be cancelled",
                "batch_ended",
            )
        return web.json_response(batch_object(batch))

    async def _batch(self, request: web.Request) -> Batch:
        batch_id = request.match_info["id"]
        found = await self._database.run(partial(batch_rows.get, tenant=request[ASKER].tenant, batch_id=batch_id))
        if found is None:
            raise no_batch(batch_id)
        return found


def _create(db: sqlite3.Connection, batch: Batch, limits: Limits) -> None:
    file = file_rows.get(db, batch.tenant, batch.input_file_id)
    if file is None:
        raise no_file(batch.input_file_id)
    if file.purpose is not Purpose.BATCH:
        raise RefusedError(
            400, f"file {file.file_id} was written by a batch: upload the input with purpose 'batch'", "invalid_file",
            "input_file_id",
        )  # fmt: skip
    active = batch_rows.count_active(db, batch.tenant)
    if active >= limits.tenant_batches:
        raise RefusedError(
            429, f"{active} batches of this tenant have not ended, as many as it may have: wait for one, or cancel one",
            "too_many_batches", type="rate_limit_error", retry_after_s=30,
        )  # fmt: skip
    batch_rows.insert(db, batch)


def _read(body: bytes) -> _Create:
    try:
        asked = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError(
            400,
            f"{error}: a batch has input_file_id, endpoint, completion_window and metadata (texts)",
            "invalid_request",
        ) from None
    if asked.endpoint not in ENDPOINTS:
        raise RefusedError(
            400, f"endpoint is {asked.endpoint[:100]!r}, and must be one of {', '.join(ENDPOINTS)}", "invalid_endpoint",
            "endpoint",
        )  # fmt: skip
    metadata = asked.metadata or {}
    if len(metadata) > MAX_METADATA or any(
        len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE for key, value in metadata.items()
    ):
        raise RefusedError(
            400, f"metadata: {MAX_METADATA} pairs at most, keys of {MAX_METADATA_KEY} and values of "
            f"{MAX_METADATA_VALUE} characters",
            "invalid_metadata", "metadata",
        )  # fmt: skip
    return asked


def _window_s(text: str) -> int:
    found = _WINDOW.fullmatch(text)
    window_s = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 0 < window_s <= _MAX_WINDOW_S:
        raise RefusedError(
            400, f"completion_window is {text[:20]!r}: use 24h, or less, such as 90m", "invalid_completion_window",
            "completion_window",
        )  # fmt: skip
    return window_s
