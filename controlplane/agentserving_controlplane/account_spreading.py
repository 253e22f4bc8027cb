"""Sends accounts that have moved to the other engines that run calls of the same trees.

An account that moves while nothing was sent for SPREAD_INTERVAL_S is sent immediately. Those that move soon after wait
for the rest of the interval, each once and with its last value: the cost is bounded by the trees and engines that are
busy, not by the calls that end.
"""

from __future__ import annotations

import asyncio

from agentserving.contract.ids import EngineId, ProgramKey

from agentserving_controlplane.engines.directives import Account, Accounts
from agentserving_controlplane.engines.links import Links
from agentserving_controlplane.table.program_index import ProgramIndex
from agentserving_controlplane.table.rows import ProgramRow

# Between two messages of accounts to one engine. Engines also learn the account with each ticket.
SPREAD_INTERVAL_S = 0.02


class AccountSpreading:
    """One leader's."""

    def __init__(self, index: ProgramIndex, links: Links) -> None:
        self._index, self._links = index, links
        # Roots whose accounts have moved, with the only engine that has reported it since; None: several have.
        self._moved: dict[ProgramKey, EngineId | None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """True while accounts wait for the end of an interval."""
        return bool(self._moved)

    def moved(self, root: ProgramKey, reporter: EngineId) -> None:
        """A report of an engine has moved the account of a tree; `flush` follows."""
        self._moved[root] = reporter if self._moved.get(root, reporter) == reporter else None

    def flush(self) -> None:
        """Sends what has moved, now or when the interval is over."""
        if self._moved and self._timer is None:
            self._send()
            self._timer = asyncio.get_running_loop().call_later(SPREAD_INTERVAL_S, self._interval_over)

    def _interval_over(self) -> None:
        self._timer = None
        self.flush()

    def _send(self) -> None:
        by_engine: dict[EngineId, list[ProgramRow]] = {}
        for key, reporter in self._moved.items():
            root = self._index.rows.get(key)
            for engine_id in self._index.engines_of_tree(key) if root is not None else ():
                if engine_id != reporter and root is not None:
                    by_engine.setdefault(engine_id, []).append(root)
        self._moved.clear()
        for engine_id, roots in by_engine.items():
            self._links.send(engine_id, accounts_of(roots))


def accounts_of(roots: list[ProgramRow]) -> Accounts:
    """The accounts of root programs, as they are now."""
    return Accounts(tuple(Account(root.key, root.attained_service_us, root.account_wait_us) for root in roots))
