"""The journal's SQLite file: the only module that speaks to it. Every method may raise `sqlite3.Error`.

WAL with ``synchronous=FULL``: a commit is one write and one fsync of the write-ahead log (WAL), and survives power
loss. The file is opened in exclusive mode, which keeps a second process out and needs no shared-memory file.

The WAL is bounded (`MAX_WAL_BYTES`), because copying it into the database may need as much space again, and the reserve
must suffice for that once the disk is full.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# user_version of the file; the journal's FORMAT file says the same.
FORMAT = 2
PAGE_BYTES = 4096
# The WAL is copied into the database when it has this many pages: two more fsyncs per 256 KiB.
CHECKPOINT_PAGES = 64
MAX_WAL_BYTES = 384 << 10
# Another process may be about to end, as a sidecar that is being replaced is.
LOCK_TIMEOUT_S = 3.0
# Rows per transaction of a delete: each page they are on goes through the WAL.
DELETED_ROWS = 500
# Freed pages that stay in the file for the next records.
SPARE_PAGES = 256

Row = tuple[int, str, bytes]


class NewerDatabaseError(Exception):
    """The file was written by a newer version; the argument is its format."""


def primary_code(error: sqlite3.Error) -> int:
    """The result code without its extension; 0 for errors of the sqlite3 module itself."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_corruption(error: sqlite3.Error) -> bool:
    """The file's content is wrong, so trying again cannot help."""
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_full(error: sqlite3.Error) -> bool:
    """The disk has no space left. Nothing was written, and the connection is still good."""
    return primary_code(error) == sqlite3.SQLITE_FULL


def is_lock(error: sqlite3.Error) -> bool:
    """Another process, or another journal of this one, has the file open."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Database:
    """Rows (seq, boot id, encoded record), in order of seq. Used by one OS thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._db = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        # page_size and auto_vacuum take effect in a new file only.
        for pragma in (
            "locking_mode=EXCLUSIVE", f"page_size={PAGE_BYTES}", "auto_vacuum=INCREMENTAL", "secure_delete=OFF",
            "journal_mode=WAL", "synchronous=FULL", f"wal_autocheckpoint={CHECKPOINT_PAGES}",
        ):  # fmt: skip
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        found = self._one("PRAGMA user_version")
        if found > FORMAT:
            raise NewerDatabaseError(found)
        if found == FORMAT:
            # Nothing to write, so that the file can be opened while the disk is full.
            return
        with self._transaction():
            # AUTOINCREMENT: SQLite remembers the highest seq when the rows are gone.
            self._db.execute(
                "CREATE TABLE report "
                "(seq INTEGER PRIMARY KEY AUTOINCREMENT, boot_id TEXT NOT NULL, record BLOB NOT NULL) STRICT"
            )
            self._db.execute(f"PRAGMA user_version={FORMAT}")

    def _one(self, sql: str) -> int:
        row = self._db.execute(sql).fetchone()
        return int(row[0]) if row and row[0] is not None else 0

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors.
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
            raise

    # -- reading -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises sqlite3.DatabaseError (SQLITE_CORRUPT) when the file's structure is damaged."""
        (answer,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            error = sqlite3.DatabaseError(f"quick_check: {answer}")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

    def rows(self) -> Iterator[Row]:
        """All rows, oldest first."""
        return iter(self._db.execute("SELECT seq, boot_id, record FROM report ORDER BY seq"))

    def readable_rows(self) -> list[Row]:
        """The rows of a damaged file that can be read, from both of its ends."""
        found: dict[int, Row] = {}
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error):
                # `order` is one of the two constants above.
                query = f"SELECT seq, boot_id, record FROM report ORDER BY seq {order}"  # nosec B608
                for row in self._db.execute(query):
                    if row[0] in found:
                        break
                    found[row[0]] = row
        return [found[seq] for seq in sorted(found)]

    def last_seq(self) -> int:
        """Highest seq ever inserted; 0 = none."""
        return self._one("SELECT max(seq) FROM sqlite_sequence WHERE name = 'report'")

    # -- writing -------------------------------------------------------------------------------------------------

    def insert(self, rows: Iterable[Row]) -> None:
        """Inserts all rows or none; durable when it returns."""
        if self.wal_bytes > MAX_WAL_BYTES:
            # An automatic checkpoint has failed before, without an error.
            self.checkpoint()
        with self._transaction():
            self._db.executemany("INSERT INTO report (seq, boot_id, record) VALUES (?, ?, ?)", rows)

    def reserve_seqs(self, last_seq: int) -> None:
        """Numbers up to this one are never given out again."""
        with self._transaction():
            self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'report'")
            self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('report', ?)", (last_seq,))

    def delete_through(self, seq: int) -> None:
        """Deletes all rows up to and including `seq`, oldest first and in portions, so that the WAL stays small."""
        while True:
            with self._transaction():
                sql = "DELETE FROM report WHERE seq IN (SELECT seq FROM report WHERE seq <= ? ORDER BY seq LIMIT ?)"
                deleted = self._db.execute(sql, (seq, DELETED_ROWS)).rowcount
            if deleted < DELETED_ROWS:
                break
        if self._one("PRAGMA freelist_count") > 2 * SPARE_PAGES:
            self.shrink(SPARE_PAGES)

    def shrink(self, spare_pages: int = 0) -> None:
        """Returns unused pages to the file system, but for some."""
        surplus = self._one("PRAGMA freelist_count") - spare_pages
        while surplus > 0:
            # In portions, so that the WAL stays small. `execute` would step this statement once: one page.
            self._db.executescript(f"PRAGMA incremental_vacuum({min(surplus, CHECKPOINT_PAGES)})")
            surplus -= CHECKPOINT_PAGES
        self.checkpoint()

    def checkpoint(self) -> None:
        """Copies the WAL into the database and truncates it."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @property
    def wal_bytes(self) -> int:
        """Size of the WAL file."""
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Closes the file; the last connection removes the WAL."""
        self._db.close()
