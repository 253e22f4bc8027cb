"""Rows of the process table, and their form in the store. Durations in microseconds, instants in Unix microseconds.

A row records its calls in flight and, per epoch, how far calls were numbered. A reported call is therefore in flight,
or numbered below the watermark and already counted, or above it and lost in a crash before it was stored. No tombstones
are needed. Calls that do not fit into the row are stored under keys of their own, in chunks (call_chunks.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

import msgspec
from agentserving.contract.ids import CallId, EngineId, ProgramId, ProgramKey, Tenant
from agentserving.contract.service_class import ServiceClass

from agentserving_controlplane.table.states import Outcome, ProgramState

# Version 1 is a row with all of its calls. A row with chunks has version 2: a reader that knows no chunks must refuse
# it, because it would lose the calls in them.
SCHEMA_VERSION, WHOLE_ROW_VERSION = 2, 1
MAX_ENGINES_KEPT = 8
# Bounds of the parts of a row. The largest row stays below MAX_ROW_BYTES, so that a row, its root's row and one chunk
# fit into one batch of the store (1 MB).
MAX_ROW_BYTES = 450_000
MAX_THREADS_KEPT, MAX_MISSING_KEPT, MAX_EPOCHS_KEPT = 512, 1000, 256
MAX_THREAD_BYTES, MAX_TOOL_BYTES = 128, 128
# Of a call: what an engine sends at most, and the bytes of all fields that say where its time went.
MAX_PHASES, TRACE_BYTES = 24, 570
# Every sum saturates here, so that no report makes a number that the wire (int64) cannot carry.
MAX_SUM = 1 << 60

ROWS_PREFIX, CHUNKS_PREFIX, LATE_PREFIX = "programs/", "calls/", "late/"
_CALL_ID = re.compile(r"(.{1,128})\.(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})", re.DOTALL)
_STATE_PAUSED_IN_OLD_ROWS = 3


NO_PROGRAM, NO_CALL = ProgramId(""), CallId("")


class NewerSchemaError(ValueError):
    """The store was written by a newer version of the control plane."""


class CallRow(msgspec.Struct, omit_defaults=True, gc=False):
    """A call in flight; counters are the largest reported so far. `boot_id` is empty until an engine reports it."""

    call_id: CallId
    attempt: int
    thread_id: str
    engine_id: EngineId
    attained_service_us: int
    admit_us: int
    boot_id: str = ""
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    level: int = 0
    running: bool = False
    parents: list[CallId] = []
    idempotency_key: str = ""
    # Digest of the admission request that carried the key.
    request: str = ""
    # Engines that the ticket names, in order; empty when it is good on one engine only (tries.py).
    engines: list[EngineId] = []
    # Engines on which the call's try is over: how it ended there, NONE = a later engine is known to have been tried.
    failed: dict[EngineId, Outcome] = {}
    # How the HTTP exchange ended; NONE = it goes on, or its end is not known.
    exchange: Outcome = Outcome.NONE
    # What its engine says of its time and its prefix, as in a report.
    phases: list[tuple[int, int]] = []
    prefix_miss: int = 0
    common_tokens: int = 0
    arrive_us: int = 0
    # Time at the gateway before the admission, and the request's traceparent.
    gateway_us: int = 0
    trace_parent: str = ""
    # Time at the gateway before that, while its tree's budget was spent.
    held_us: int = 0
    # When it was admitted, the program had finished calls; and all of its calls were on other engines.
    follows: bool = False
    elsewhere: bool = False


def call_bytes(call: CallRow) -> int:
    """Upper bound on the encoded size of a call, whatever its counters become."""
    # A character is at most four bytes. The call may move to any of its engines, and fail on each.
    engines = call.engines or (call.engine_id,)
    ids = max(map(len, engines)) + (2 * sum(map(len, engines)) if call.engines else 0)
    named = 2 * len(call.call_id) + 4 * (len(call.thread_id) + len(call.idempotency_key) + ids)
    return 500 + TRACE_BYTES + named + (sum(map(len, call.parents)) + 3 * len(call.parents) if call.parents else 0)


class TimeRow(msgspec.Struct, omit_defaults=True, gc=False):
    """Where the time of finished calls went, and the time between calls; microseconds, as TimeSplit in types.proto."""

    gateway_us: int = 0
    held_us: int = 0
    queue_us: int = 0
    prefill_us: int = 0
    decode_us: int = 0
    preempted_us: int = 0
    tools_us: int = 0


class BudgetRow(msgspec.Struct, omit_defaults=True, gc=False):
    """Limits of a tree; 0 = none. `additions`: digests of the newest requests that added to them, by their ids."""

    tokens: int = 0
    engine_us: int = 0
    calls: int = 0
    additions: dict[str, str] = {}


class ThreadRow(msgspec.Struct, omit_defaults=True, gc=False):
    """A chain of calls."""

    thread_id: str
    calls: int = 0
    service_us: int = 0
    wait_us: int = 0


class ProgramRow(msgspec.Struct, omit_defaults=True, dict=True):
    """A program. On a root, `attained_service_us` and `account_wait_us` are the account of the whole tree."""

    program_id: ProgramId
    tenant: Tenant
    open_us: int
    name: str = ""
    parent: ProgramId = NO_PROGRAM
    root: ProgramId = NO_PROGRAM
    state: ProgramState = ProgramState.ACTIVE
    outcome: Outcome = Outcome.NONE
    attained_service_us: int = 0
    account_wait_us: int = 0
    total_service_us: int = 0
    wait_us: int = 0
    calls_completed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    calls: dict[CallId, CallRow] = {}
    threads: dict[str, ThreadRow] = {}
    # Engines that ran its calls, most recent first.
    engines: list[EngineId] = []
    last_arrival_us: int = 0
    last_completion_us: int = 0
    close_us: int = 0
    # By epoch: one more than the number of the program's newest call.
    admitted: dict[int, int] = {}
    # Calls that ended without a report, and lost admissions: a late report of one is still counted.
    missing: list[CallId] = []
    # By epoch: numbers at or above the watermark that have been counted after a crash.
    adopted: dict[int, list[int]] = {}
    idempotency_key: str = ""
    # Closes as COMPLETED when its last call ends.
    closing: bool = False
    # Opened by a call that named it: there is no client that closes it.
    claimed: bool = False
    # Digest of the OpenProgram request that carried the key.
    request: str = ""
    # On a root: its whole tree is paused.
    paused: bool = msgspec.field(default=False, name="held")
    # During a tool wait: the tool and the wait that the client expects (0 = unknown).
    tool: str = ""
    tool_expected_us: int = 0
    # Its owner has cancelled it, whatever its outcome was by then: it takes no calls until it is opened again.
    cancel_requested: bool = False
    times: TimeRow = msgspec.field(default_factory=TimeRow)
    # By agentserving.contract.phases.PrefixMiss: finished calls, and tokens that were computed again.
    prefix_misses: dict[int, tuple[int, int]] = {}
    # On a root: its tree's budget, and what the tree has used since the root was opened (budgets.py).
    budget: BudgetRow | None = None
    tree_tokens: int = 0
    tree_engine_us: int = 0
    tree_calls: int = 0
    # Of the whole tree: that of the root.
    service_class: ServiceClass = ServiceClass.STANDARD

    # Cached in the instance's dictionary (`dict=True`), which is not encoded: an admission needs each a dozen times.
    @cached_property
    def key(self) -> ProgramKey:
        return ProgramKey(self.tenant, self.program_id)

    @cached_property
    def root_key(self) -> ProgramKey:
        return ProgramKey(self.tenant, self.root)

    @property
    def cancelled(self) -> bool:
        """True for a program that takes no calls because its owner has cancelled it."""
        return self.state is ProgramState.CLOSED and (self.cancel_requested or self.outcome is Outcome.CANCELLED)


def used_thread(row: ProgramRow, thread_id: str) -> ThreadRow:
    """The thread, created when new and marked as used last; the least recently used one makes room."""
    thread = row.threads.pop(thread_id, None) or ThreadRow(thread_id)
    while len(row.threads) >= MAX_THREADS_KEPT:
        del row.threads[next(iter(row.threads))]
    row.threads[thread_id] = thread
    return thread


class _Stored(msgspec.Struct, array_like=True):
    version: int
    body: msgspec.Raw


_encoder = msgspec.msgpack.Encoder()
_row_decoder = msgspec.msgpack.Decoder(ProgramRow)
_calls_decoder = msgspec.msgpack.Decoder(list[CallRow])
_stored_decoder = msgspec.msgpack.Decoder(_Stored)


def encode(row: ProgramRow, in_row: dict[CallId, CallRow] | None = None) -> bytes:
    """A row for the store; with only the calls `in_row` when the others are stored in chunks."""
    if in_row is None:
        return _encoder.encode((WHOLE_ROW_VERSION, row))
    return _encoder.encode((SCHEMA_VERSION, msgspec.structs.replace(row, calls=in_row)))


def encode_calls(calls: Iterable[CallRow]) -> bytes:
    """A chunk of calls for the store."""
    return _encoder.encode((SCHEMA_VERSION, list(calls)))


def _body(data: bytes) -> msgspec.Raw:
    stored = _stored_decoder.decode(data)
    if stored.version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"the store holds rows of schema {stored.version}, this version reads up to {SCHEMA_VERSION}: upgrade"
        )
    return stored.body


def decode(data: bytes) -> ProgramRow:
    """Inverse of `encode`. NewerSchemaError for rows of a newer version."""
    row = _row_decoder.decode(_body(data))
    if row.state == _STATE_PAUSED_IN_OLD_ROWS:
        row.state, row.paused = ProgramState.ACTIVE, True
    return row


def decode_calls(data: bytes) -> list[CallRow]:
    """Inverse of `encode_calls`. NewerSchemaError."""
    return _calls_decoder.decode(_body(data))


def row_key(tenant: str, program_id: str) -> str:
    """Store key of a row. Tenants and ids contain no NUL, so pairs never collide."""
    return f"{ROWS_PREFIX}{tenant}\x00{program_id}"


def chunk_key(tenant: str, program_id: str, number: int) -> str:
    """Store key of a chunk of a program's calls."""
    return f"{CHUNKS_PREFIX}{tenant}\x00{program_id}\x00{number}"


def late_key(tenant: str, program_id: str, number: int) -> str:
    """Store key of a list of a program's late calls (late_charges.py)."""
    return f"{LATE_PREFIX}{tenant}\x00{program_id}\x00{number}"


def list_parts(key: str) -> tuple[ProgramKey, int]:
    """Inverse of `chunk_key` and of `late_key`."""
    tenant, program_id, number = key.partition("/")[2].split("\x00")
    return ProgramKey(Tenant(tenant), ProgramId(program_id)), int(number)


def cut(text: str, size: int) -> str:
    """The longest prefix of a text that encodes to at most `size` bytes."""
    if 4 * len(text) <= size:
        return text
    return text.encode()[:size].decode(errors="ignore")


def call_parts(call_id: str) -> tuple[ProgramId, int, int] | None:
    """(program id, epoch, number) of a call id, or None when it is not one. Each call has exactly one spelling."""
    parts = _CALL_ID.fullmatch(call_id)
    return (ProgramId(parts[1]), int(parts[2]), int(parts[3])) if parts else None
