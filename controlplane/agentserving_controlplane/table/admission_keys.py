"""Idempotency keys of admissions: a retried AdmitCall finds the call that it made. Pure.

A key is kept for as long as a ticket is good, and restored from the rows of calls in flight. It holds names, not the
answer: the ticket is signed anew from the row, or from what the call was admitted with when it has ended.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import NamedTuple

from google.protobuf.message import Message

from agentserving_controlplane.errors import ExistsError, InvalidError
from agentserving_controlplane.table.programs import MAX_KEY_BYTES
from agentserving_controlplane.table.rows import CallRow, ProgramRow

KEPT_US = 600_000_000
MAX_KEPT = 100_000


class KeptAdmission(NamedTuple):
    """What a key was used for."""

    request: str
    row: ProgramRow
    call: CallRow
    at_us: int


def digest(request: Message) -> str:
    """What a request asks for, its idempotency key aside: the same text for the same request."""
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("idempotency_key")
    return hashlib.blake2b(bare.SerializeToString(deterministic=True), digest_size=12).hexdigest()


def check_key(key: str) -> None:
    """InvalidError for one that is too long to keep."""
    if len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidError("KEY_TOO_LONG", f"idempotency_key: at most {MAX_KEY_BYTES} bytes", field="idempotency_key")


def reused(key: str) -> ExistsError:
    """The refusal."""
    return ExistsError(
        "IDEMPOTENCY_KEY_REUSED",
        f"idempotency_key: {key!r} came with another request before: use a new key",
        field="idempotency_key",
    )


class AdmissionKeys:
    """Oldest first; bounded in time and number."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], KeptAdmission] = OrderedDict()

    def restore(self, row: ProgramRow, now_us: int) -> None:
        """Takes in the keys of a row's calls in flight."""
        for call in row.calls.values():
            if call.idempotency_key:
                self.keep(row, call, now_us)

    def keep(self, row: ProgramRow, call: CallRow, now_us: int) -> None:
        """Remembers the call that a key made."""
        self._kept[(row.tenant, call.idempotency_key)] = KeptAdmission(call.request, row, call, now_us)
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if len(self._kept) <= MAX_KEPT and now_us - oldest.at_us <= KEPT_US:
                break
            self._kept.popitem(last=False)

    def find(self, tenant: str, key: str, request: str, now_us: int) -> KeptAdmission | None:
        """The admission that the key made. ExistsError when it was another request's."""
        check_key(key)
        kept = self._kept.get((tenant, key))
        if kept is None or now_us - kept.at_us > KEPT_US:
            return None
        if kept.request != request:
            raise reused(key)
        return kept
