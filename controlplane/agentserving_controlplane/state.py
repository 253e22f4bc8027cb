"""Everything a leader knows, and how changes of it are stored and announced.

One asyncio loop owns this state. An operation (calls.py, program_operations.py, engine_sessions.py, upkeep.py) changes
the table and calls `settle`, which hands the changed rows to the group commit and wakes watchers. Only operations that
promise durability wait for the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
from agentserving.contract.budgets import Budget
from agentserving.contract.ids import Tenant
from agentserving.contract.policy import Accounting, preset

from agentserving_controlplane.account_spreading import AccountSpreading
from agentserving_controlplane.clock import read_clock
from agentserving_controlplane.engines.directives import ProgramEnded
from agentserving_controlplane.engines.links import Links
from agentserving_controlplane.engines.load_balancer import LoadBalancer
from agentserving_controlplane.engines.registry import EngineRegistry
from agentserving_controlplane.engines.sizing import Demand, LastingWaits, Size, by_engine, needed, size_of
from agentserving_controlplane.errors import OverloadedError
from agentserving_controlplane.instant import Instant
from agentserving_controlplane.policy.in_force import PolicyInForce
from agentserving_controlplane.policy.tenants import Tenants
from agentserving_controlplane.policy.version import PolicyVersion
from agentserving_controlplane.settings import PlaneSettings
from agentserving_controlplane.store.group_commit import GroupCommit
from agentserving_controlplane.store.port import FencedError, Store, StoreError, Write
from agentserving_controlplane.store.write_buffer import LateWrite
from agentserving_controlplane.table.bounds import Capacity
from agentserving_controlplane.table.changes import Item
from agentserving_controlplane.table.endings import Endings
from agentserving_controlplane.table.history import History
from agentserving_controlplane.table.idempotency import AdmissionKeys
from agentserving_controlplane.table.process_table import ProcessTable
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import ProgramState
from agentserving_controlplane.table.token_use import TOKENS_PREFIX

log = structlog.get_logger()

# From this share of the store's space on, new programs are refused.
NEARLY_FULL = 0.8


@dataclass(frozen=True, slots=True)
class ProgramView:
    """A program as clients see it: its row, the account of its root, and what is derived from both."""

    row: ProgramRow
    root: ProgramRow
    state: ProgramState
    level: int
    revision: int


class LeaderState:
    """The parts of a leader; `ControlPlane` adds the operations."""

    def __init__(
        self,
        settings: PlaneSettings,
        store: Store,
        epoch: int,
        on_fenced: Callable[[Exception], None],
        capacity: Capacity,
    ) -> None:
        self.settings = settings
        self.epoch = epoch
        self._store = store
        self.policy_in_force = PolicyInForce(preset(settings.policy), settings.balancer)
        self.tenants = Tenants()
        self.table = ProcessTable(epoch, capacity=capacity)
        self.table.bounds.of_tenant = self.tenants.of
        self.table.programs.default_budget = self.default_budget
        self.table.programs.service.default = settings.service_class
        self.table.programs.service.of_tenant = lambda tenant: self.tenants.of(tenant).service_class
        self.engines = EngineRegistry(self.table.index.calls_on, self.table.index.engines_changed)
        self.balancer = LoadBalancer(self.engines)
        self.commits = GroupCommit(store, epoch, on_fenced=on_fenced, max_pending=settings.max_pending_writes)
        self.links = Links()
        self.accounts = AccountSpreading(self.table.index, self.links)
        self.keys = AdmissionKeys()
        # As engines said last: there may be none.
        self._engine_size, self._waits = Size(), LastingWaits()
        # Share of the store's space that is in use.
        self.store_fill = 0.0
        # Highest epoch that an engine has seen, if it is later than this one's.
        self.later_epoch = 0
        # Called after each change of a program or an engine.
        self.listeners: set[Callable[[], None]] = set()
        # Revisions and positions start at the clock, so that none of an earlier process is mistaken for one of this.
        first = read_clock().unix_us
        self.history = History(first)
        self.endings = self.table.programs.endings = Endings(first)
        # Endings whose spans a collector has taken, and those that were dropped; both 0 without a collector.
        self.span_counts = {"sent": 0, "dropped": 0}
        self.use_policy()

    @staticmethod
    def now() -> Instant:
        """The current moment; operations read it once."""
        return read_clock()

    @property
    def policy(self) -> PolicyVersion:
        """The policy in force, as it was applied."""
        return self.policy_in_force.current

    @property
    def revision(self) -> int:
        """Revision of the newest change."""
        return self.history.revision

    def use_policy(self) -> None:
        """Makes the table and the load balancer follow the policy in force."""
        self.table.accounting = self.policy.policy.accounting
        self.balancer.kind = self.policy.balancer

    def default_budget(self, tenant: Tenant) -> Budget:
        """Of a program that is opened without a budget of its own: the tenant's limits, then those of the cluster."""
        return self.tenants.of(tenant).budget.or_else(self.settings.default_budget)

    # -- writing -------------------------------------------------------------------------------------------------

    def settle(self) -> int:
        """Queues all changed items for the store; returns the number to await with `commits.durable`."""
        groups = self.table.take_changes()
        if not groups:
            return self.commits.number
        for row in self.table.programs.take_ended():
            engines = (engine_id for program in self.table.index.tree(row) for engine_id in program.engines)
            for engine_id in dict.fromkeys(engines):
                self.links.send(engine_id, ProgramEnded(row.key))
        self.history.begin()
        for group in groups:
            self.commits.put_together(self._writes(group))
            for key in dict.fromkeys(item.key for item in group) if len(group) > 1 else (group[0].key,):
                self.history.note(key, removed=False)
        for tenant in self.table.tokens.take_changed():
            if self.table.bounds.of_tenant(tenant).tokens_per_day:
                self.put_tokens(tenant)
        self.wake()
        return self.commits.number

    def put_tokens(self, tenant: Tenant) -> None:
        """Queues what a tenant has used today."""
        write = LateWrite(f"{TOKENS_PREFIX}{tenant}", partial(self.table.tokens.encode, tenant))
        self.commits.put_together([write])

    def _writes(self, group: list[Item]) -> list[Write] | list[LateWrite]:
        """An item by itself is encoded when it lands, once for all changes until then; groups are encoded now."""
        if len(group) == 1:
            (item,) = group
            return [LateWrite(self.table.store_key(item), partial(self.table.encode, item))]
        return [Write(self.table.store_key(item), self.table.encode(item)) for item in group]

    async def settled(self) -> None:
        """Settles, and returns once everything so far is durable."""
        await self.commits.durable(self.settle())

    def wake(self) -> None:
        """Announces a change to watchers and gateways."""
        for listener in self.listeners:
            listener()

    async def tend_store(self) -> None:
        """Frees space of the store, and finds out how much is in use. To be called every few seconds."""
        try:
            fill = await self._store.tend()
        except StoreError as error:
            log.warning("it is not known how full the store is", error=str(error))
            return
        if (fill < NEARLY_FULL) != (self.store_fill < NEARLY_FULL):
            log.warning("space of the store", share_in_use=round(fill, 3), new_programs_from=NEARLY_FULL)
        self.store_fill = fill

    def check_space(self) -> None:
        """OverloadedError when the store has no space for new programs; what it has is left to those that exist."""
        if self.store_fill >= NEARLY_FULL:
            raise OverloadedError(
                "STORE_NEARLY_FULL",
                f"{self.store_fill:.0%} of the store's space is in use: close programs that have ended, or ask for a"
                " larger quota",
                retry_after_s=10.0,
            )

    def check_room(self) -> None:
        """Admits a new program or call only while the store keeps up. Must precede any change.

        FencedError when another leader may be writing, OverloadedError while too many writes wait for the store.
        """
        if not self._store.holds(self.epoch):
            raise FencedError(f"epoch {self.epoch} is over")
        if self.commits.full:
            reason = self.commits.last_error or "it is slow"
            raise OverloadedError(
                "STORE_BACKPRESSURE", f"{self.commits.pending} writes wait for the store: {reason}", retry_after_s=1.0
            )

    # -- reading -------------------------------------------------------------------------------------------------

    def describe(self, row: ProgramRow) -> ProgramView:
        """A row as clients see it."""
        root = self.table.index.root_of(row)
        account = 0 if self.table.accounting is Accounting.NONE else root.attained_service_us
        level = self.policy_in_force.for_engines.policy.level_of(account, root.name)
        return ProgramView(row, root, self.table.index.state_of(row), level, self.revision)

    def demand(self) -> Demand:
        """What live programs need of engines now."""
        engines, now_us = list(self.engines), self.now().steady_us
        signals = self.table.demand.signals(now_us)
        self._engine_size = size = size_of((each for each in engines if each.attached), self._engine_size)
        self.table.demand.most_tokens = size.context_tokens
        engines_needed = needed(signals, engines, size)
        return Demand(
            signals=signals,
            needed=engines_needed,
            lasting_waiting=self._waits.note(engines_needed.waiting, now_us),
            size=size,
            waiting_programs=self.table.index.waiting_trees,
            engines=by_engine(signals, engines),
        )

    def note_later_epoch(self, epoch: int) -> None:
        """An engine has seen a later epoch, while this process holds the lease: the store has gone back."""
        if epoch > self.later_epoch:
            self.later_epoch = epoch
            log.error(
                "the store has gone back to an older revision: engines of before refuse this leader, and calls have no "
                "accounts; restore the store with its revision moved on (docs/backup.md), or restart the engines",
                epoch=self.epoch,
                seen=epoch,
            )

    def overview(self) -> dict[str, int]:
        """Counts for GetOverview and /metrics."""
        index = self.table.index
        return {
            "programs_live": index.live.total,
            "programs_running": index.busy,
            "calls_running": index.running_calls,
            "calls_waiting": index.open_calls - index.running_calls,
        }
