"""Idempotency keys of admissions: a repeated AdmitCall finds the call that the first one admitted. Pure.

A key is valid for as long as a ticket, and is restored from the rows of calls in flight. Only names are stored, not the
answer: the ticket is signed again from the call's row.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from agentserving.contract.ids import Tenant

from agentserving_controlplane.table.programs import check_key, check_not_cancelled, key_reused
from agentserving_controlplane.table.rows import CallRow, ProgramRow

LIFETIME_US = 600_000_000
MAX_KEPT = 100_000


class KeyedAdmission(NamedTuple):
    """The call that a key admitted, the digest of its request, and when (monotonic microseconds)."""

    digest: str
    row: ProgramRow
    call: CallRow
    steady_us: int


class AdmissionKeys:
    """Bounded in age and number; the oldest go first."""

    def __init__(self) -> None:
        self._admissions: OrderedDict[tuple[Tenant, str], KeyedAdmission] = OrderedDict()

    def restore(self, row: ProgramRow, steady_us: int) -> None:
        """Adds the keys of a row's calls in flight."""
        for call in row.calls.values():
            if call.idempotency_key:
                self.add(row, call, steady_us)

    def add(self, row: ProgramRow, call: CallRow, steady_us: int) -> None:
        """Remembers the call that a key admitted."""
        self._admissions[(row.tenant, call.idempotency_key)] = KeyedAdmission(call.request, row, call, steady_us)
        while self._admissions:
            oldest = next(iter(self._admissions.values()))
            if len(self._admissions) <= MAX_KEPT and steady_us - oldest.steady_us <= LIFETIME_US:
                break
            self._admissions.popitem(last=False)

    def find(self, tenant: Tenant, key: str, digest: str, steady_us: int) -> KeyedAdmission | None:
        """The admission that the key made. ExistsError for another request, ForbiddenError for a cancelled program."""
        check_key(key)
        known = self._admissions.get((tenant, key))
        if known is None or steady_us - known.steady_us > LIFETIME_US:
            return None
        if known.digest != digest:
            raise key_reused(key)
        check_not_cancelled(known.row)
        return known
