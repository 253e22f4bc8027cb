"""Accounts of programs as this engine knows them. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from agentserving.contract.ids import ProgramKey

# Accounts remembered after a program's last call here; the least recently used is forgotten first.
MAX_PROGRAMS = 65_536


class Account(NamedTuple):
    """What a program has received and how long it has waited, in microseconds."""

    attained_us: int = 0
    wait_us: int = 0


UNKNOWN = Account()


class Accounts:
    """The largest values known of each root program: from the process table, from tickets and from calls here."""

    def __init__(self, limit: int = MAX_PROGRAMS) -> None:
        self._limit = limit
        self._accounts: OrderedDict[ProgramKey, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, program: ProgramKey) -> Account:
        """The account of a program; zero when it is unknown."""
        return self._accounts.get(program, UNKNOWN)

    def raise_to(self, program: ProgramKey, attained_us: int, wait_us: int) -> Account:
        """Takes over an account; never lowers what is known."""
        known = self.of(program)
        account = self._accounts[program] = Account(max(known.attained_us, attained_us), max(known.wait_us, wait_us))
        self._accounts.move_to_end(program)
        if len(self._accounts) > self._limit:
            self._accounts.popitem(last=False)
        return account
