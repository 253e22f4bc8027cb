"""TenantService: what is said about tenants is stored under `tenants/`, and their weights are sent to every engine."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from agentserving.contract.ids import Tenant

from agentserving_controlplane.engines.directives import TenantShares
from agentserving_controlplane.errors import InvalidError, OverloadedError
from agentserving_controlplane.policy.tenants import (
    BOUNDS,
    MAX_BOUND,
    MAX_TENANTS,
    MAX_WEIGHT,
    TENANTS_PREFIX,
    TenantRow,
    decode,
    encode,
)
from agentserving_controlplane.state import LeaderState
from agentserving_controlplane.store.port import Write

MAX_PAGE = 1000


class TenantOperations:
    """Changes `state.tenants`; each change is durable when its method returns."""

    def __init__(self, state: LeaderState) -> None:
        self._state = state

    def restore(self, data: bytes) -> None:
        """Takes in a row of the store. ValueError when it cannot be read."""
        self._state.tenants.put(decode(data))

    def page(self, after: str, size: int) -> tuple[list[TenantRow], str]:
        """Rows in the order of names, and where the next page begins. InvalidError."""
        if not 0 <= size <= MAX_PAGE:
            raise InvalidError("PAGE_TOO_LARGE", f"page_size: 0 to {MAX_PAGE}", field="page_size")
        return self._state.tenants.page(after, size or MAX_PAGE)

    async def set(self, tenant: Tenant, changes: Mapping[str, int]) -> TenantRow:
        """Changes the named fields of a tenant's row; the others stay. InvalidError, OverloadedError."""
        _check(changes)
        state, tenants = self._state, self._state.tenants
        before = tenants.of(tenant)
        row = msgspec.structs.replace(before, **changes)
        if tenant in tenants and row == before:
            # The row may still be on its way to the store.
            await state.commits.durable(state.commits.number)
            return row
        if tenant not in tenants and len(tenants) >= MAX_TENANTS:
            raise OverloadedError("TOO_MANY_TENANTS", f"at most {MAX_TENANTS} tenants can be set: remove unused ones")
        state.check_room()
        tenants.put(row)
        await self._store(tenant, encode(row), before.weight != row.weight)
        return row

    async def remove(self, tenant: Tenant) -> None:
        """Forgets a tenant's row: weight 1 and no bounds."""
        weight = self._state.tenants.of(tenant).weight
        if self._state.tenants.remove(tenant):
            await self._store(tenant, None, weight != 1)
        else:
            await self._state.commits.durable(self._state.commits.number)

    async def _store(self, tenant: Tenant, value: bytes | None, has_moved: bool) -> None:
        number = self._state.commits.put_together([Write(f"{TENANTS_PREFIX}{tenant}", value)])
        if has_moved:
            self._state.links.send_all(TenantShares(self._state.tenants.shares()))
        await self._state.commits.durable(number)


def _check(changes: Mapping[str, int]) -> None:
    weight = changes.get("weight", 1)
    if not 1 <= weight <= MAX_WEIGHT:
        raise InvalidError("BAD_WEIGHT", f"weight: 1 to {MAX_WEIGHT}, not {weight}", field="weight")
    for name in BOUNDS:
        if changes.get(name, 0) > MAX_BOUND:
            raise InvalidError("BAD_BOUND", f"{name}: at most {MAX_BOUND}; 0 = no bound", field=name)
