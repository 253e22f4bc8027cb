"""Rows of the process table, and how they lie in the store. All times are microseconds, instants since the epoch.

A row holds its open calls and, per epoch, how many calls it has admitted: a call is open, or below the watermark and so
counted already, or above it and so lost in a crash before it was written down. No tombstones are kept.
"""

from __future__ import annotations

import re

import msgspec

SCHEMA_VERSION = 1
MAX_ENGINES_KEPT = 8
# What keeps the largest row below MAX_ROW_BYTES, so that two of them fit into one transaction of etcd (1.5 MiB).
MAX_ROW_BYTES = 700_000
MAX_THREADS_KEPT, MAX_MISSING_KEPT, MAX_EPOCHS_KEPT = 512, 1000, 256
MAX_THREAD_BYTES, MAX_OPEN_CALL_BYTES = 128, 300_000
# Saturation of every sum: no engine's word makes a number that the wire cannot carry (int64).
MAX_SUM = 1 << 60

_CALL_ID = re.compile(r"(.{1,128})\.(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})", re.DOTALL)
_PAUSED_BEFORE_HOLDS = 3


class NewerSchemaError(ValueError):
    """The store was written by a newer version."""


class CallRow(msgspec.Struct, omit_defaults=True):
    """A call in flight; counters are the largest reported so far."""

    call_id: str
    attempt: int
    thread_id: str
    engine_id: str
    attained_service_us: int
    admit_us: int
    heard_us: int
    boot_id: str = ""
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    level: int = 0
    running: bool = False
    parents: list[str] = []
    # Of the admission, when it carried a key; and what it asked for.
    idempotency_key: str = ""
    request: str = ""


def call_bytes(call: CallRow) -> int:
    """Bound on what a call in flight takes in its encoded row."""
    named = 2 * len(call.call_id) + len(call.thread_id.encode()) + len(call.idempotency_key.encode())
    return 450 + named + sum(len(parent) + 3 for parent in call.parents)


class ThreadRow(msgspec.Struct, omit_defaults=True):
    """A chain of calls."""

    thread_id: str
    calls: int = 0
    service_us: int = 0
    wait_us: int = 0


class ProgramRow(msgspec.Struct, omit_defaults=True):
    """A program; `attained_service_us` and `account_wait_us` are meaningful on a root and count for its whole tree."""

    program_id: str
    tenant: str
    open_us: int
    name: str = ""
    parent: str = ""
    root: str = ""
    state: int = 1
    outcome: int = 0
    attained_service_us: int = 0
    account_wait_us: int = 0
    total_service_us: int = 0
    wait_us: int = 0
    calls_completed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    calls: dict[str, CallRow] = {}
    threads: dict[str, ThreadRow] = {}
    engines: list[str] = []
    last_arrival_us: int = 0
    last_completion_us: int = 0
    close_us: int = 0
    # epoch -> calls admitted; and calls below a watermark that were never heard of (lost admissions).
    admitted: dict[int, int] = {}
    missing: list[str] = []
    idempotency_key: str = ""
    closing: bool = False
    # What OpenProgram asked for, with its key; and, on a root, whether its tree is held.
    request: str = ""
    held: bool = False


class _Stored(msgspec.Struct, array_like=True):
    version: int
    row: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(ProgramRow)
_stored_decoder = msgspec.msgpack.Decoder(_Stored)


def encode(row: ProgramRow) -> bytes:
    """A row as it lies in the store."""
    return _encoder.encode((SCHEMA_VERSION, row))


def decode(data: bytes) -> ProgramRow:
    """Inverse of `encode`. NewerSchemaError for rows of a newer version."""
    stored = _stored_decoder.decode(data)
    if stored.version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"the store holds rows of schema {stored.version}, this version reads up to {SCHEMA_VERSION}: upgrade"
        )
    row = _row_decoder.decode(stored.row)
    if row.state == _PAUSED_BEFORE_HOLDS:
        row.state, row.held = 1, True
    return row


def row_key(tenant: str, program_id: str) -> str:
    """Key of a row. Tenants and ids hold no NUL, so pairs never collide."""
    return f"programs/{tenant}\x00{program_id}"


def cut(text: str, size: int) -> str:
    """The beginning of a text that takes at most `size` bytes."""
    return text.encode()[:size].decode(errors="ignore")


def call_parts(call_id: str) -> tuple[str, int, int] | None:
    """(program id, epoch, n) of a call id, or None when it is not one. There is one spelling of each."""
    parts = _CALL_ID.fullmatch(call_id)
    return (parts[1], int(parts[2]), int(parts[3])) if parts else None
