"""The levels of a policy by class of programs, prepared for lookups. Pure."""

from __future__ import annotations

from agentserving.contract.policy import MAX_RANK, Level, Policy, level_of
from agentserving.contract.service_class import ServiceClass

# Ranks of a class of service, those of calls without a ticket included; the ranks of STANDARD are those of the policy.
BAND = MAX_RANK + 2
# Ahead of all classes.
AGED_BAND = -2 * BAND
# By number: hashing an enum costs more than the rest of a rank.
BANDS = tuple((each or ServiceClass.STANDARD) * BAND - ServiceClass.STANDARD * BAND for each in ServiceClass)


class LevelTable:
    """The levels of one class of programs, as columns."""

    __slots__ = ("best", "best_rank", "floors", "front_rank", "last", "levels", "lower", "quanta", "ranks")

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.levels = levels
        self.last = len(levels) - 1
        self.quanta = [level.quantum_us for level in levels]
        self.lower = [0, *(level.upper_bound_us for level in levels[:-1])]
        self.ranks = [index if level.rank is None else level.rank for index, level in enumerate(levels)]
        # The least service that counts as received when a call at this level waits: see Levels.
        self.floors = [0] * len(levels)
        # Starving calls are promoted to this level,
        self.best_rank = min(self.ranks)
        self.best = self.ranks.index(self.best_rank)
        # and run with this rank there: the best of all classes, since calls of another class starve them as well.
        self.front_rank = self.best_rank


class Levels:
    """The level tables of a policy.

    A class may have a level that its programs have not sunk to but start at, because of what they are expected to need.
    Starvation is wait relative to service, so their calls would starve immediately, newcomers first, and each would
    overtake the programs before it. They count as having received what programs of no class have at that rank.
    """

    def __init__(self, policy: Policy) -> None:
        self._default = LevelTable(policy.levels)
        self._classes = {name: LevelTable(levels) for name, levels in policy.classes}
        tables = [self._default, *self._classes.values()]
        front = min(table.best_rank for table in tables)
        for table in tables:
            table.front_rank = front
        for table in self._classes.values():
            table.floors = [self._service_at(rank) for rank in table.ranks]
        self._unmanaged = self._behind_all()

    def _service_at(self, rank: int) -> int:
        """The least service, in microseconds, of programs of no class that have this rank or the next better one."""
        pairs = zip(self._default.ranks, self._default.lower, strict=True)
        return max((lower for each, lower in pairs if each <= rank), default=0)

    def _behind_all(self) -> LevelTable:
        """For calls without a ticket: the best level, for as long as a promotion lasts, and one behind BATCH."""
        tables = (self._default, *self._classes.values())
        best = self._default
        rank, worst = self._default.best_rank, max(max(table.ranks) for table in tables)
        # They count as if their account were in the last level, so that waiting does not promote them early.
        bound_us = max(table.lower[-1] for table in tables)
        table = LevelTable((Level(bound_us, best.quanta[best.best], rank=rank), Level(rank=worst + 1 + BAND)))
        table.floors = table.lower
        return table

    def of(self, class_name: str, attained_service_us: int, *, managed: bool) -> tuple[LevelTable, int]:
        """(table, level) of a call of a program with this account (Algorithm 1, line 'arrivals')."""
        if not managed:
            return self._unmanaged, self._unmanaged.last
        table = self._classes.get(class_name, self._default)
        return table, level_of(table.levels, attained_service_us)
