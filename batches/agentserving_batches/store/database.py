"""SQLite behind one thread. Each `run` is one transaction: all of it is on the disk when it returns, or none of it."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Self, TypeVar

T = TypeVar("T")

# Of the schema; in the file's user_version. A newer one is refused.
VERSION = 1
_SCHEMA = """
CREATE TABLE files (
  position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL,
  purpose TEXT NOT NULL, size_bytes INTEGER NOT NULL, created_s INTEGER NOT NULL, expires_s INTEGER NOT NULL
);
CREATE INDEX files_of_tenant ON files (tenant, position);
CREATE TABLE batches (
  position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, status TEXT NOT NULL,
  ending TEXT NOT NULL, endpoint TEXT NOT NULL, window TEXT NOT NULL, grant_text TEXT NOT NULL,
  input_file_id TEXT NOT NULL, output_file_id TEXT NOT NULL, error_file_id TEXT NOT NULL,
  created_s INTEGER NOT NULL, expires_s INTEGER NOT NULL, metadata TEXT NOT NULL, problems TEXT NOT NULL,
  entered_s TEXT NOT NULL, total INTEGER NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL
);
CREATE INDEX batches_of_tenant ON batches (tenant, position);
CREATE INDEX batches_by_status ON batches (status);
CREATE VIEW active_batches AS
  SELECT * FROM batches WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');
CREATE TABLE lines (
  batch_id TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, offset INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL, succeeded INTEGER, result BLOB, UNIQUE (batch_id, number)
);
CREATE INDEX lines_without_result ON lines (batch_id, number) WHERE result IS NULL;
"""


class InUseError(Exception):
    """The directory belongs to another process, or to a newer version; the message says what to do."""


class Database:
    """`with` opens and closes it. OSError, sqlite3.Error, InUseError when it cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # One writer: SQLite would make others wait anyway, and no row changes while it is looked at.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._connection: sqlite3.Connection | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self._directory / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InUseError(
                f"{self._directory} is in use by another process: give this one its own --data-dir"
            ) from None
        try:
            self._thread.submit(self._open).result()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _open(self) -> None:
        # No implicit transactions: `_transaction` begins and ends them.
        connection = sqlite3.connect(self._directory / "batches.sqlite", isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        # What has been answered survives a loss of power, too.
        connection.execute("PRAGMA synchronous = FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            connection.close()
            raise InUseError(
                f"{self._directory} was written by a newer agentserving (format {version}, this knows {VERSION})"
            )
        if version < VERSION:
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        self._connection = connection

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._thread.submit(self._connection.close).result()
        self._thread.shutdown()
        if self._lock is not None:
            self._lock.close()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, once its changes are on the disk. Whatever it raises; nothing is changed then.

        A caller that is cancelled meanwhile does not undo it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            found = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return found
