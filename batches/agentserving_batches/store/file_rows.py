"""Rows of files. Functions of a connection, to be run in a transaction of the database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from agentserving_batches.values import File, Purpose

_NEWEST_FIRST = (
    "SELECT * FROM files WHERE tenant = ? AND position < ? AND (? = '' OR purpose = ?) ORDER BY position DESC LIMIT ?"
)
_OLDEST_FIRST = (
    "SELECT * FROM files WHERE tenant = ? AND position > ? AND (? = '' OR purpose = ?) ORDER BY position LIMIT ?"
)


def _file(row: sqlite3.Row) -> File:
    return File(
        file_id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        purpose=Purpose(row["purpose"]),
        size_bytes=row["size_bytes"],
        created_s=row["created_s"],
        expires_s=row["expires_s"],
    )


def insert(db: sqlite3.Connection, file: File) -> None:
    """Adds it; one that is there stays."""
    db.execute(
        "INSERT OR IGNORE INTO files (id, tenant, name, purpose, size_bytes, created_s, expires_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (file.file_id, file.tenant, file.name, file.purpose.value, file.size_bytes, file.created_s, file.expires_s),
    )


def get(db: sqlite3.Connection, tenant: str, file_id: str) -> File | None:
    """None for another tenant's, too."""
    row = db.execute("SELECT * FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)).fetchone()
    return None if row is None else _file(row)


def usage(db: sqlite3.Connection, tenant: str) -> tuple[int, int]:
    """(files, bytes) of a tenant."""
    count, size = db.execute(
        "SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM files WHERE tenant = ?", (tenant,)
    ).fetchone()
    return count, size


def total(db: sqlite3.Connection) -> tuple[int, int]:
    """(files, bytes) of all tenants."""
    count, size = db.execute("SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM files").fetchone()
    return count, size


def page(
    db: sqlite3.Connection, tenant: str, *, after: str, limit: int, purpose: str, newest_first: bool
) -> list[File]:
    """Up to `limit` files behind the one with the id `after`; "" = from the start, and `purpose` "" = any."""
    statement, start = (_NEWEST_FIRST, 1 << 62) if newest_first else (_OLDEST_FIRST, 0)
    if after:
        row = db.execute("SELECT position FROM files WHERE id = ? AND tenant = ?", (after, tenant)).fetchone()
        if row is None:
            return []
        start = row["position"]
    rows = db.execute(statement, (tenant, start, purpose, purpose, limit))
    return [_file(row) for row in rows]


def user_of(db: sqlite3.Connection, file_id: str) -> str:
    """The id of a batch that still needs the file; "" for none."""
    row = db.execute("SELECT id FROM active_batches WHERE input_file_id = ? LIMIT 1", (file_id,)).fetchone()
    return "" if row is None else str(row["id"])


def delete(db: sqlite3.Connection, file_id: str) -> None:
    db.execute("DELETE FROM files WHERE id = ?", (file_id,))


def expired(db: sqlite3.Connection, now_s: int, limit: int) -> list[str]:
    """Ids of files that may be deleted and that no batch needs."""
    rows = db.execute(
        "SELECT id FROM files WHERE expires_s <= ? AND id NOT IN (SELECT input_file_id FROM active_batches) LIMIT ?",
        (now_s, limit),
    )
    return [str(row["id"]) for row in rows]


def known(db: sqlite3.Connection, file_ids: Sequence[str]) -> set[str]:
    """Those of the ids that have a row."""
    rows = db.execute("SELECT id FROM files WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(file_ids),))
    return {str(row["id"]) for row in rows}
