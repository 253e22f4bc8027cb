"""What administrators have said about tenants: their share of every engine and the bounds of their use. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from agentserving.contract.budgets import MAX_AMOUNT, Budget
from agentserving.contract.ids import Tenant
from agentserving.contract.service_class import ServiceClass

# Store keys: tenants/<name>.
TENANTS_PREFIX = "tenants/"
# A row has some 100 bytes, and all weights go to an engine in one message.
MAX_TENANTS = 10_000
MAX_WEIGHT = 1000
# Anything larger is a mistake, and must fit an int64 wherever it is counted.
MAX_BOUND = 1 << 53


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    """Of one tenant. Bounds: 0 = none."""

    tenant: Tenant
    # Share of an engine while several tenants have calls there.
    weight: int = 1
    # Programs that are neither closed nor expired.
    max_programs: int = 0
    # Calls that are admitted and have not ended.
    max_calls: int = 0
    calls_per_minute: int = 0
    # Prompt and answer tokens.
    tokens_per_minute: int = 0
    tokens_per_day: int = 0
    # Budget of a program that has none of its own: tokens, model-execution time in seconds, calls.
    program_tokens: int = 0
    program_engine_s: int = 0
    program_calls: int = 0

    @property
    def budget(self) -> Budget:
        """Of each program of the tenant, by default."""
        us = min(self.program_engine_s * 1_000_000, MAX_AMOUNT)
        return Budget(tokens=self.program_tokens, engine_us=us, calls=self.program_calls)

    # Of its programs, and the best that they may ask for; UNSPECIFIED = any, by default the cluster's.
    service_class: ServiceClass = ServiceClass.UNSPECIFIED


BOUNDS = (
    "max_programs", "max_calls", "calls_per_minute", "tokens_per_minute", "tokens_per_day",
    "program_tokens", "program_engine_s", "program_calls",
)  # fmt: skip
_decoder = msgspec.json.Decoder(TenantRow)


class Tenants:
    """The rows by tenant. A tenant without one has weight 1 and no bounds."""

    def __init__(self) -> None:
        self._rows: dict[Tenant, TenantRow] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TenantRow]:
        return iter(self._rows.values())

    def __contains__(self, tenant: object) -> bool:
        return tenant in self._rows

    def of(self, tenant: Tenant) -> TenantRow:
        """What holds for a tenant, whether anything was said about it or not."""
        return self._rows.get(tenant) or TenantRow(tenant=tenant)

    def put(self, row: TenantRow) -> None:
        """Adds or replaces a row."""
        self._rows[row.tenant] = row

    def remove(self, tenant: Tenant) -> bool:
        """Forgets a row; False if there was none."""
        return self._rows.pop(tenant, None) is not None

    def page(self, after: str, size: int) -> tuple[list[TenantRow], str]:
        """Up to `size` rows in the order of names, and where the next page begins ("" = nowhere)."""
        names = sorted(name for name in self._rows if name > after)
        page = [self._rows[name] for name in names[:size]]
        return page, page[-1].tenant if len(names) > len(page) else ""

    def shares(self) -> tuple[tuple[Tenant, int], ...]:
        """(tenant, weight) of every tenant whose weight is not 1."""
        return tuple((row.tenant, row.weight) for row in self._rows.values() if row.weight != 1)


def encode(row: TenantRow) -> bytes:
    """The row as the store has it: JSON, which `decode` reads."""
    return msgspec.json.encode(row)


def decode(data: bytes) -> TenantRow:
    """Inverse of `encode`. ValueError."""
    row = _decoder.decode(data)
    if not 1 <= row.weight <= MAX_WEIGHT:
        raise ValueError(f"weight: {row.weight} is not in 1 to {MAX_WEIGHT}")
    return row
