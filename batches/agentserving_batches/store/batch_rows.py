"""Rows of batches and their lines. Functions of a connection, to be run in a transaction of the database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

import msgspec

from agentserving_batches.store import file_rows
from agentserving_batches.values import ENDED, Batch, File, Line, LineResult, Problem, Status

_INSERT = (
    "INSERT INTO batches (id, tenant, status, ending, endpoint, window, grant_text, input_file_id, output_file_id,"
    " error_file_id, created_s, expires_s, metadata, problems, entered_s, total, completed, failed)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_COUNT_RESULT = {
    True: "UPDATE batches SET completed = completed + 1 WHERE id = ?",
    False: "UPDATE batches SET failed = failed + 1 WHERE id = ?",
}


def _batch(row: sqlite3.Row) -> Batch:
    return Batch(
        batch_id=row["id"],
        tenant=row["tenant"],
        status=Status(row["status"]),
        ending=Status(row["ending"]),
        endpoint=row["endpoint"],
        window=row["window"],
        grant=row["grant_text"],
        input_file_id=row["input_file_id"],
        output_file_id=row["output_file_id"],
        error_file_id=row["error_file_id"],
        created_s=row["created_s"],
        expires_s=row["expires_s"],
        metadata=json.loads(row["metadata"]),
        problems=msgspec.json.decode(row["problems"], type=tuple[Problem, ...]),
        entered_s={Status(status): at for status, at in json.loads(row["entered_s"]).items()},
        total=row["total"],
        completed=row["completed"],
        failed=row["failed"],
    )


def insert(db: sqlite3.Connection, batch: Batch) -> None:
    db.execute(
        _INSERT,
        (
            batch.batch_id, batch.tenant, batch.status.value, batch.ending.value, batch.endpoint, batch.window,
            batch.grant, batch.input_file_id, batch.output_file_id, batch.error_file_id, batch.created_s,
            batch.expires_s,
            json.dumps(dict(batch.metadata)), msgspec.json.encode(batch.problems).decode(), "{}", 0, 0, 0,
        ),
    )  # fmt: skip


def get(db: sqlite3.Connection, tenant: str, batch_id: str) -> Batch | None:
    """None for another tenant's, too."""
    row = db.execute("SELECT * FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant)).fetchone()
    return None if row is None else _batch(row)


def any_tenants(db: sqlite3.Connection, batch_id: str) -> Batch | None:
    row = db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return None if row is None else _batch(row)


def page(db: sqlite3.Connection, tenant: str, *, after: str, limit: int) -> list[Batch]:
    """Up to `limit` batches, newest first, behind the one with the id `after`; "" = from the newest."""
    start = 1 << 62
    if after:
        row = db.execute("SELECT position FROM batches WHERE id = ? AND tenant = ?", (after, tenant)).fetchone()
        if row is None:
            return []
        start = row["position"]
    rows = db.execute(
        "SELECT * FROM batches WHERE tenant = ? AND position < ? ORDER BY position DESC LIMIT ?", (tenant, start, limit)
    )
    return [_batch(row) for row in rows]


def active_ids(db: sqlite3.Connection) -> list[str]:
    """Of all tenants, oldest first."""
    rows = db.execute("SELECT id FROM active_batches ORDER BY position")
    return [str(row["id"]) for row in rows]


def count_active(db: sqlite3.Connection, tenant: str) -> int:
    (count,) = db.execute("SELECT COUNT(*) FROM active_batches WHERE tenant = ?", (tenant,)).fetchone()
    return int(count)


def count_by_status(db: sqlite3.Connection) -> dict[Status, int]:
    rows = db.execute("SELECT status, COUNT(*) AS batches FROM batches GROUP BY status")
    return {Status(row["status"]): row["batches"] for row in rows}


def enter(
    db: sqlite3.Connection,
    batch_id: str,
    status: Status,
    now_s: int,
    *,
    of: Iterable[Status],
    ending: Status | None = None,
) -> bool:
    """Moves a batch from one of the states `of` to `status`; False when it is in another one, and then nothing."""
    row = db.execute("SELECT status, ending, entered_s FROM batches WHERE id = ?", (batch_id,)).fetchone()
    if row is None or Status(row["status"]) not in set(of):
        return False
    entered = {**json.loads(row["entered_s"]), status.value: now_s}
    # Who acts for a client no longer needs the means to, once a batch has ended.
    db.execute(
        "UPDATE batches SET status = ?, ending = ?, entered_s = ?, grant_text = iif(?, '', grant_text) WHERE id = ?",
        (status.value, (ending or Status(row["ending"])).value, json.dumps(entered), status in ENDED, batch_id),
    )
    return True


def begin(db: sqlite3.Connection, batch_id: str, lines: Iterable[Line], now_s: int) -> None:
    """A validated batch: its lines, and the state IN_PROGRESS. Nothing for one that was cancelled meanwhile."""
    if not enter(db, batch_id, Status.IN_PROGRESS, now_s, of=[Status.VALIDATING]):
        return
    db.executemany(
        "INSERT INTO lines (batch_id, number, custom_id, offset, size_bytes) VALUES (?, ?, ?, ?, ?)",
        ((batch_id, line.number, line.custom_id, line.offset, line.size_bytes) for line in lines),
    )
    db.execute(
        "UPDATE batches SET total = (SELECT COUNT(*) FROM lines WHERE batch_id = ?) WHERE id = ?", (batch_id, batch_id)
    )


def fail(db: sqlite3.Connection, batch_id: str, problems: tuple[Problem, ...], now_s: int) -> None:
    """A batch with an input that makes no sense."""
    if enter(db, batch_id, Status.FAILED, now_s, of=[Status.VALIDATING]):
        text = msgspec.json.encode(problems).decode()
        db.execute("UPDATE batches SET problems = ? WHERE id = ?", (text, batch_id))


def pending(db: sqlite3.Connection, batch_id: str, after: int, limit: int) -> list[Line]:
    """Lines without a result, in order, behind the line `after`."""
    rows = db.execute(
        "SELECT number, custom_id, offset, size_bytes FROM lines"
        " WHERE batch_id = ? AND number > ? AND result IS NULL ORDER BY number LIMIT ?",
        (batch_id, after, limit),
    )
    return [Line(**dict(row)) for row in rows]


def record(db: sqlite3.Connection, batch_id: str, result: LineResult) -> bool:
    """The first result of a line counts; False for another one."""
    changed = db.execute(
        "UPDATE lines SET result = ?, succeeded = ? WHERE batch_id = ? AND number = ? AND result IS NULL",
        (result.text, int(result.succeeded), batch_id, result.number),
    ).rowcount
    if changed:
        db.execute(_COUNT_RESULT[result.succeeded], (batch_id,))
    return bool(changed)


def results(db: sqlite3.Connection, batch_id: str, after: int, limit: int) -> list[sqlite3.Row]:
    """number, custom_id, succeeded, result (None = none) of lines in order, behind the line `after`."""
    return db.execute(
        "SELECT number, custom_id, succeeded, result FROM lines WHERE batch_id = ? AND number > ?"
        " ORDER BY number LIMIT ?",
        (batch_id, after, limit),
    ).fetchall()


def reserve_outputs(db: sqlite3.Connection, batch_id: str, output_id: str, error_id: str) -> tuple[str, str]:
    """The ids of a batch's output and error file: those, or what an earlier try to write them has reserved."""
    db.execute(
        "UPDATE batches SET output_file_id = ?, error_file_id = ? WHERE id = ? AND output_file_id = ''",
        (output_id, error_id, batch_id),
    )
    row = db.execute("SELECT output_file_id, error_file_id FROM batches WHERE id = ?", (batch_id,)).fetchone()
    return row["output_file_id"], row["error_file_id"]


def end(db: sqlite3.Connection, batch: Batch, output: File | None, errors: File | None, now_s: int) -> bool:
    """Its files are written: it ends, and its lines go. False when it has ended before."""
    if not enter(db, batch.batch_id, batch.ending, now_s, of=[Status.FINALIZING, Status.CANCELLING]):
        return False
    for file in (output, errors):
        if file is not None:
            file_rows.insert(db, file)
    db.execute(
        "UPDATE batches SET output_file_id = ?, error_file_id = ? WHERE id = ?",
        (output.file_id if output else "", errors.file_id if errors else "", batch.batch_id),
    )
    db.execute("DELETE FROM lines WHERE batch_id = ?", (batch.batch_id,))
    return True


def delete_ended(db: sqlite3.Connection, created_before_s: int) -> None:
    """Batches that have ended and are older than that."""
    db.execute(
        "DELETE FROM batches WHERE created_s < ? AND id NOT IN (SELECT id FROM active_batches)", (created_before_s,)
    )
