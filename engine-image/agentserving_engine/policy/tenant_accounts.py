"""What each tenant has received on one engine, as a virtual time: service divided by weight. Pure.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024), with the time of running
sequences as the service: a step of `dt` adds `dt / weight` for each sequence of the tenant that holds a slot, whether
the step computed anything for it or not. What a tenant calls its programs, and how it divides its work among programs,
calls and sequences, therefore changes nothing. A tenant whose calls hold a larger share of the KV cache than of the
slots is charged for that instead (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011). The part of a step that
computes prompts stops everybody, so it is charged in full to those whose prompts they are.

A tenant that begins to wait starts no lower than those that wait already: the time in which it wanted nothing saves it
nothing. If no other waits, there was room for all so far, and no tenant is owed anything: it starts no lower than
any tenant that runs. What a tenant is ahead is never forgotten while the engine has calls, so leaving and coming back
clears no debt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agentserving.contract.ids import Tenant

# Calls without a tenant's ticket, all together. They run behind all tenants' calls, but do not starve.
UNTICKETED, UNTICKETED_WEIGHT = Tenant(""), 0.01
# A tenant may be ahead of another by so much of the whole engine's time before a running call of it is preempted for
# that; and the call must have run for as long since its last start, so that recomputing what it loses (a second or two)
# stays a small part of it.
QUANTUM_US = 5_000_000
# Weight of the newest ended sequence in the average of what one receives, and the average before any has ended.
_SMOOTHING, _FIRST_GUESS_US = 0.05, 1_000_000.0
# Tenants without calls whose virtual times are remembered: beyond, those furthest behind are forgotten.
MAX_ABSENT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What tenants used in a step besides slots."""

    # Of the whole engine: a tenant that has used all of it for some time is charged for every one of them.
    slots: int
    # Shares of the KV cache; charged instead of the slots where they are larger.
    kv: Mapping[Tenant, float]
    # Time in which the engine computed only for the tenant; charged besides.
    own_us: Mapping[Tenant, float]


class _Account:
    __slots__ = ("running", "virtual_us", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.virtual_us = 0.0
        self.running = 0


class TenantAccounts:
    """Virtual times by tenant. The caller reports what happens while several tenants have calls."""

    def __init__(self) -> None:
        self._weights: dict[Tenant, int] = {}
        self._accounts: dict[Tenant, _Account] = {}
        self._running: dict[Tenant, _Account] = {}
        self._sequence_us = _FIRST_GUESS_US

    def set_weights(self, weights: Mapping[Tenant, int]) -> None:
        """Replaces the weights of all tenants; those not named have 1."""
        self._weights = dict(weights)
        for tenant, account in self._accounts.items():
            account.weight = self._weight(tenant)

    def _weight(self, tenant: Tenant) -> float:
        return UNTICKETED_WEIGHT if tenant == UNTICKETED else self._weights.get(tenant, 1)

    def clear(self) -> None:
        """Forgets all virtual times: the engine is empty."""
        self._accounts.clear()
        self._running.clear()

    def _of(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(self._weight(tenant))
        return account

    # -- events --------------------------------------------------------------------------------------------------

    def waits(self, tenant: Tenant, waiting: Iterable[Tenant]) -> None:
        """A tenant begins to wait, while the `waiting` ones do."""
        account = self._of(tenant)
        least_us = min((self._of(other).virtual_us for other in waiting), default=None)
        if least_us is None:
            least_us = max((other.virtual_us for other in self._running.values()), default=0.0)
        account.virtual_us = max(account.virtual_us, least_us)

    def started(self, tenant: Tenant) -> None:
        """A call of the tenant runs from now on."""
        account = self._running[tenant] = self._of(tenant)
        account.running += 1

    def stopped(self, tenant: Tenant) -> None:
        """A running call of the tenant has ended, or was preempted."""
        account = self._running[tenant]
        account.running -= 1
        if not account.running:
            del self._running[tenant]

    def all_stopped(self) -> None:
        """No call is known to run: those that do are started again."""
        for account in self._running.values():
            account.running = 0
        self._running.clear()

    def ended(self, slot_us: int) -> None:
        """A sequence has ended that held a slot for so long."""
        self._sequence_us += _SMOOTHING * (slot_us - self._sequence_us)

    def charge(self, dt_us: float, usage: Usage | None = None) -> None:
        """Time passed in which calls ran; O(tenants that run)."""
        for tenant, account in self._running.items():
            cost_us = dt_us * account.running
            if usage is not None:
                cost_us = max(cost_us, dt_us * usage.slots * usage.kv.get(tenant, 0.0))
                cost_us += usage.slots * usage.own_us.get(tenant, 0.0)
            account.virtual_us += cost_us / account.weight

    def forget_absent(self, present: Iterable[Tenant]) -> None:
        """Bounds the memory for tenants without calls; `present` are those with waiting calls."""
        if len(self._accounts) <= 2 * MAX_ABSENT:
            return
        keep = {*present, *self._running}
        absent = sorted((tenant for tenant in self._accounts if tenant not in keep), key=self.virtual_us)
        for tenant in absent[:-MAX_ABSENT]:
            del self._accounts[tenant]

    # -- queries -------------------------------------------------------------------------------------------------

    @property
    def running_tenants(self) -> list[Tenant]:
        return list(self._running)

    def virtual_us(self, tenant: Tenant) -> float:
        """Service received, divided by the weight."""
        return self._of(tenant).virtual_us

    def standing(self, tenant: Tenant, more: int = 0) -> float:
        """Virtual time that the tenant will have if each running sequence, and `more`, receive what an average one
        does: the lowest is served first.

        Without that, one tenant would take every slot that comes free until its sequences have been charged for it.
        """
        account = self._of(tenant)
        return account.virtual_us + (account.running + more) * self._sequence_us / account.weight

    def owes(self, ahead: Tenant, behind: Tenant) -> bool:
        """A running call of one tenant should be preempted for a waiting one of another.

        Only if it has received a quantum of the whole engine's time more than its share, and still is not behind
        afterwards: otherwise two tenants would preempt each other in turn.
        """
        running = sum(account.running for account in self._running.values())
        gap_us = self.virtual_us(ahead) - self.virtual_us(behind)
        return gap_us > QUANTUM_US * running and self.standing(ahead, -1) >= self.standing(behind, 1)
