"""What is done with a journal file whose content is damaged: it is set aside, and its readable rows are copied."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from agentserving_sidecar.journal.database import Database, NewerDatabaseError, Row

# Files are set aside for people to look at; a disk that damages each new one must not be filled with them.
MAX_SET_ASIDE = 3


def set_aside(path: Path) -> Path:
    """Renames a database file and its WAL to ``<name>.damaged-<number>``; gives the new path."""
    old = sorted(path.parent.glob(f"{path.name}.damaged-*[0-9]"))
    for stale in old[: max(0, len(old) - MAX_SET_ASIDE + 1)]:
        stale.unlink()
    number = int(old[-1].name.rpartition("-")[2]) + 1 if old else 1
    aside = path.with_name(f"{path.name}.damaged-{number:06d}")
    # The WAL goes with its file: with another file its content would be wrong.
    for suffix in ("-wal", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    return aside


def salvage(path: Path) -> tuple[list[Row], int]:
    """The rows of a damaged file that can be read, and the highest seq it names (0 = none)."""
    rows: list[Row] = []
    last = 0
    with contextlib.suppress(sqlite3.Error, NewerDatabaseError):
        db = Database(path)
        try:
            rows = db.readable_rows()
            last = db.last_seq()
        finally:
            db.close()
    return rows, last
