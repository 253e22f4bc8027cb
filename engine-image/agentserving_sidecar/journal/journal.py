"""Terminal reports that the control plane has not acknowledged yet.

A record that `append` has returned is on disk and stays there until it is acknowledged, whatever happens: SIGKILL and
power loss (SQLite, `database`), a disk that is full (nothing is half written; `reserve` lets acknowledgements make
room), a damaged file (set aside, and its readable records copied into a new one). Records are numbered by `seq`, which
counts up across restarts. The unacknowledged ones are in memory, too; the file is read when the journal is opened.

Methods block on the disk and may be called from any OS thread; `recording` calls them off the event loop.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog
from agentserving.contract.channel import CallRecord

from agentserving_sidecar.journal import format_1
from agentserving_sidecar.journal.damage import salvage, set_aside
from agentserving_sidecar.journal.database import (
    FORMAT,
    Database,
    NewerDatabaseError,
    Row,
    is_corruption,
    is_full,
    is_lock,
)
from agentserving_sidecar.journal.entries import Entry, decode, encode
from agentserving_sidecar.journal.reserve import SpaceReserve

log = structlog.get_logger()

Result = TypeVar("Result")

NAME = "journal.sqlite"
# Rows per transaction when a whole journal is copied: the WAL is bounded.
COPY_ROWS = 200
# Of encoded records: some million calls, and hours of a control plane that is away.
DEFAULT_LIMIT_BYTES = 256 << 20


class JournalFullError(Exception):
    """The journal's own limit is reached. The plugin keeps further records until there is room."""


class JournalUnavailableError(OSError):
    """The disk does not take the records now, for example because it is full. Nothing was written: try again."""


class JournalInUseError(Exception):
    """Another sidecar has the directory open."""


class NewerFormatError(Exception):
    """The directory was written by a newer version."""


class Journal:
    """Unacknowledged terminal records in order of their seq. `corrupt_records`: found damaged, and not recovered."""

    def __init__(self, directory: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._directory, self._limit_bytes = directory, limit_bytes
        self._path = directory / NAME
        self._reserve = SpaceReserve(directory / "reserve")
        self._lock = threading.Lock()
        self._db: Database | None = None
        self._has_reserve = False
        self._bytes = 0
        # Acknowledged up to here; deleted from the file up to there.
        self._acked = self._deleted = 0
        self.next_seq = 1
        self.unacked: dict[int, Entry] = {}
        self._sizes: dict[int, int] = {}
        self.corrupt_records = 0
        directory.mkdir(parents=True, exist_ok=True)
        self._check_format()
        try:
            self._open()
        except JournalUnavailableError as error:
            # The engine serves all the same, and its plugin keeps the records.
            log.error("journal cannot be opened now, trying again with the next records", error=str(error))

    # -- opening -------------------------------------------------------------------------------------------------

    def _check_format(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = int((self._directory / "FORMAT").read_text())
            if found > FORMAT:
                raise self._newer(found)

    def _newer(self, found: int) -> NewerFormatError:
        return NewerFormatError(
            f"{self._directory} has journal format {found}, this version reads up to {FORMAT}: upgrade, or use "
            "another --state-dir"
        )

    def _open(self) -> Database:
        """Reads what is on disk. JournalUnavailableError when the disk does not allow it now."""
        try:
            db = self._opened()
        except NewerDatabaseError as error:
            raise self._newer(int(error.args[0])) from error
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error) and is_lock(error):
                raise JournalInUseError(
                    f"{self._directory} is used by another sidecar: give each its own --state-dir"
                ) from error
            raise JournalUnavailableError(f"{self._path}: {error}") from error
        self._db = db
        self._has_reserve = self._reserve.allocate()
        return db

    def _opened(self) -> Database:
        db: Database | None = None
        try:
            db = Database(self._path)
            db.check()
            self._read(db)
            self._migrate(db)
            return db
        except sqlite3.Error as error:
            if db is not None:
                db.close()
            if not is_corruption(error):
                raise
            return self._replacement(error)
        except OSError:
            if db is not None:
                db.close()
            raise

    def _read(self, db: Database) -> None:
        """Takes in the file's rows that are not in memory yet."""
        last = 0
        for row in db.rows():
            last = row[0]
            self._take_row(row)
        self.next_seq = max(self.next_seq, last + 1, db.last_seq() + 1)

    def _take_row(self, row: Row) -> None:
        seq, boot_id, data = row
        if seq <= self._acked or seq in self.unacked:
            return
        try:
            entry = Entry(seq=seq, boot_id=boot_id, record=decode(data))
        except ValueError as error:
            self.corrupt_records += 1
            log.error("a record in the journal is damaged and was skipped", seq=seq, error=str(error))
            return
        self._remember(entry, len(data))

    def _remember(self, entry: Entry, size: int) -> None:
        self.unacked[entry.seq] = entry
        self._sizes[entry.seq] = size
        self._bytes += size

    def _migrate(self, db: Database) -> None:
        """Moves the records of a directory of format 1 into the database, once."""
        old = format_1.read(self._directory)
        marker = self._directory / "FORMAT"
        if old is not None:
            self.corrupt_records += old.corrupt
            self.next_seq = max(self.next_seq, old.last_seq + 1)
            # A migration that was interrupted has inserted the first of them.
            self._copy(db, [entry for entry in old.entries if entry.seq not in self.unacked])
            db.reserve_seqs(self.next_seq - 1)
            # Before the old files go: an older version must refuse the directory, not find it empty.
            marker.write_text(f"{FORMAT}\n")
            format_1.remove(self._directory)
            log.info("journal migrated to SQLite", unacknowledged=len(self.unacked), damaged=old.corrupt)
        elif not marker.exists():
            marker.write_text(f"{FORMAT}\n")

    def _copy(self, db: Database, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), COPY_ROWS):
            self._insert(db, entries[start : start + COPY_ROWS])

    # -- a damaged file ------------------------------------------------------------------------------------------

    def _replacement(self, error: sqlite3.Error) -> Database:
        """A new file in place of a damaged one, with what is in memory and what can be read of the damaged one."""
        aside = set_aside(self._path)
        rows, last = salvage(aside)
        for row in rows:
            self._take_row(row)
        self.next_seq = max(self.next_seq, last + 1, *(row[0] + 1 for row in rows), 1)
        entries = [self.unacked[seq] for seq in sorted(self.unacked)]
        self.unacked, self._sizes, self._bytes = {}, {}, 0
        db = Database(self._path)
        try:
            self._copy(db, entries)
            db.reserve_seqs(self.next_seq - 1)
        except BaseException:
            for entry in entries:
                self.unacked.setdefault(entry.seq, entry)
            db.close()
            raise
        log.error(
            "the journal was damaged and has been replaced; records that could not be read are lost",
            error=str(error), set_aside=str(aside), records=len(entries),
        )  # fmt: skip
        return db

    # -- records -------------------------------------------------------------------------------------------------

    @property
    def last_unacked(self) -> int:
        """Highest seq that is not acknowledged; 0 when all are."""
        return max(list(self.unacked), default=0)

    def entries(self) -> list[Entry]:
        """All that is not acknowledged, in order."""
        return list(self.unacked.values())

    def append(self, boot_id: str, records: Sequence[CallRecord]) -> list[Entry]:
        """`append_all` for records of one boot."""
        return self.append_all([(boot_id, record) for record in records])

    def append_all(self, records: Sequence[tuple[str, CallRecord]]) -> list[Entry]:
        """Puts (boot id, record) pairs on disk, all or none; durable when it returns.

        JournalFullError at the journal's limit; JournalUnavailableError when the disk does not take them now.
        """
        with self._lock:
            if self._bytes > self._limit_bytes:
                raise JournalFullError(f"{self._bytes} bytes unacknowledged, the limit is {self._limit_bytes}")

            def insert(db: Database) -> list[Entry]:
                numbered = enumerate(records, self.next_seq)
                entries = [Entry(seq=seq, boot_id=boot_id, record=record) for seq, (boot_id, record) in numbered]
                self._insert(db, entries)
                return entries

            return self._attempt(insert)

    def _insert(self, db: Database, entries: Sequence[Entry]) -> None:
        rows = [(entry.seq, entry.boot_id, encode(entry.record)) for entry in entries]
        if not rows:
            return
        db.insert(rows)
        for entry, row in zip(entries, rows, strict=True):
            self._remember(entry, len(row[2]))
        self.next_seq = max(self.next_seq, entries[-1].seq + 1)

    def _attempt(self, write: Callable[[Database], Result]) -> Result:
        """Opens the file if it is not open, and replaces it if it is damaged."""
        try:
            db = self._db or self._open()
            try:
                return write(db)
            except sqlite3.Error as error:
                if not is_corruption(error):
                    raise
                self._close()
                self._db = self._replacement(error)
                return write(self._db)
        except sqlite3.Error as error:
            if not is_full(error):
                # After an I/O error only the file says what it holds.
                self._close()
            raise JournalUnavailableError(f"{self._path}: {error}") from error

    def ack(self, seq: int) -> None:
        """Everything up to `seq` is durable elsewhere. JournalUnavailableError: still on disk; call it again."""
        with self._lock:
            # A number that was never given out must not cover later records.
            self._acked = max(self._acked, min(seq, self.next_seq - 1))
            for old in list(itertools.takewhile(lambda each: each <= self._acked, self.unacked)):
                del self.unacked[old]
                self._bytes -= self._sizes.pop(old, 0)
            if self._deleted < self._acked:
                self._attempt(lambda db: self._delete(db, self._acked))
                self._deleted = self._acked

    def _delete(self, db: Database, upto: int) -> None:
        try:
            db.delete_through(upto)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            self._reserve.release()
            self._has_reserve = False
            db.checkpoint()
            db.delete_through(upto)
            db.shrink()
        if not self._has_reserve:
            self._has_reserve = self._reserve.allocate()

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def close(self) -> None:
        with self._lock:
            self._close()
