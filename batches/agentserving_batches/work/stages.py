"""What a batch does in each of its states. Every step may be interrupted by a crash and is then done again."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import IO, TypeVar

import structlog

from agentserving_batches.limits import Limits
from agentserving_batches.lines import Validated, unknown_models, validate
from agentserving_batches.outcomes import unfinished
from agentserving_batches.store import batch_rows
from agentserving_batches.store.contents import Contents, new_file_id
from agentserving_batches.store.database import Database
from agentserving_batches.values import Batch, File, Problem, Purpose, Status
from agentserving_batches.work.calls import Calls
from agentserving_batches.work.gateway import Gateway

log = structlog.get_logger()
R = TypeVar("R")

# Rows that are read at a time while output files are written.
PAGE = 200


class Stages:
    """Moves batches on. `now`: Unix time."""

    def __init__(
        self, database: Database, contents: Contents, gateway: Gateway, limits: Limits,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._database, self._contents, self._gateway, self._limits = database, contents, gateway, limits
        self._calls = Calls(database, contents, gateway, limits)
        self._now = now

    async def drive(self, batch_id: str, cancelled: asyncio.Event) -> None:
        """Returns when the batch has ended. `cancelled` is set after its row says CANCELLING."""
        while True:
            batch = await self._database.run(partial(batch_rows.any_tenants, batch_id=batch_id))
            if batch is None:
                return
            match batch.status:
                case Status.VALIDATING:
                    await self._validate(batch)
                case Status.IN_PROGRESS:
                    await self._execute(batch, cancelled)
                case Status.FINALIZING | Status.CANCELLING:
                    await self._finalize(batch)
                case _:
                    log.info("batch ended", batch=batch_id, tenant=batch.tenant, status=batch.status.value,
                             total=batch.total, completed=batch.completed, failed=batch.failed)  # fmt: skip
                    return

    def _now_s(self) -> int:
        return int(self._now())

    # -- validating ----------------------------------------------------------------------------------------------

    async def _validate(self, batch: Batch) -> None:
        found = await asyncio.to_thread(self._read, batch)
        problems = found.problems
        if not problems and (served := await self._gateway.models(batch.grant)) is not None:
            problems = unknown_models(found, served)
        if problems:
            await self._run(batch_rows.fail, batch.batch_id, tuple(problems), self._now_s())
        else:
            await self._run(batch_rows.begin, batch.batch_id, found.lines, self._now_s())

    def _read(self, batch: Batch) -> Validated:
        try:
            with self._contents.path(batch.input_file_id).open("rb") as file:
                return validate(file, batch.endpoint, self._limits.max_lines)
        except FileNotFoundError:
            missing = Problem(
                code="file_not_found", message=f"the input file {batch.input_file_id} is gone: upload it again"
            )
            return Validated(problems=[missing])

    # -- in progress ---------------------------------------------------------------------------------------------

    async def _execute(self, batch: Batch, cancelled: asyncio.Event) -> None:
        calls = asyncio.create_task(self._calls.run(batch), name=f"calls of {batch.batch_id}")
        cancel = asyncio.create_task(cancelled.wait())
        try:
            left_s = max(0.0, batch.expires_s - self._now())
            await asyncio.wait({calls, cancel}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            is_done = calls.done()
        finally:
            # The gateway sees that the client of the calls has left, and ends them.
            calls.cancel()
            cancel.cancel()
            await asyncio.gather(calls, cancel, return_exceptions=True)
        if is_done:
            calls.result()
        # A batch that was cancelled is in another state, and stays there.
        ending = Status.COMPLETED if is_done else Status.EXPIRED
        if not cancelled.is_set():
            enter = partial(batch_rows.enter, of=[Status.IN_PROGRESS], ending=ending)
            await self._run(enter, batch.batch_id, Status.FINALIZING, self._now_s())

    # -- finalizing ----------------------------------------------------------------------------------------------

    async def _finalize(self, batch: Batch) -> None:
        output_id, error_id = await self._run(
            batch_rows.reserve_outputs, batch.batch_id, new_file_id(), new_file_id()
        )  # fmt: skip
        sizes = [0, 0]
        after = 0
        async with AsyncExitStack() as files:
            outputs = [await files.enter_async_context(self._contents.writing(each)) for each in (output_id, error_id)]
            while rows := await self._run(batch_rows.results, batch.batch_id, after, PAGE):
                texts = [_text(batch, row) for row in rows]
                for which, text in texts:
                    sizes[which] += len(text)
                await asyncio.to_thread(_write, outputs, texts)
                after = rows[-1]["number"]
        made = [
            self._output(batch, file_id, kind, size) if size else None
            for file_id, kind, size in zip((output_id, error_id), ("output", "error"), sizes, strict=True)
        ]
        await self._run(batch_rows.end, batch, *made, self._now_s())
        for file, file_id in zip(made, (output_id, error_id), strict=True):
            if file is None:
                self._contents.delete(file_id)

    def _output(self, batch: Batch, file_id: str, kind: str, size_bytes: int) -> File:
        now_s = self._now_s()
        return File(
            file_id=file_id,
            tenant=batch.tenant,
            name=f"{batch.batch_id}_{kind}.jsonl",
            purpose=Purpose.OUTPUT,
            size_bytes=size_bytes,
            created_s=now_s,
            expires_s=now_s + self._limits.keep_s,
        )

    async def _run(self, work: Callable[..., R], *arguments: object) -> R:
        return await self._database.run(lambda db: work(db, *arguments))


def _write(outputs: Sequence[IO[bytes]], texts: Sequence[tuple[int, bytes]]) -> None:
    for which, text in texts:
        outputs[which].write(text)


def _text(batch: Batch, row: sqlite3.Row) -> tuple[int, bytes]:
    """(0 for the output file and 1 for the error file, the line)."""
    if row["result"] is not None:
        return (0 if row["succeeded"] else 1), row["result"]
    text = unfinished(batch.ending, batch_id=batch.batch_id, number=row["number"], custom_id=row["custom_id"])
    return 1, text
