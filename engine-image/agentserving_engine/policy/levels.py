"""The levels of a policy, by classes of programs, ready to be looked up in. Pure."""

from __future__ import annotations

from agentserving.contract.policy import Level, Policy, level_of


class LevelTable:
    """The levels of one class of programs, by columns."""

    __slots__ = ("best", "last", "levels", "lower", "quanta", "ranks")

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.levels = levels
        self.last = len(levels) - 1
        self.quanta = [level.quantum_us for level in levels]
        self.lower = [0, *(level.upper_bound_us for level in levels[:-1])]
        self.ranks = [index if level.rank is None else level.rank for index, level in enumerate(levels)]
        # The level of those who have waited too long.
        self.best = self.ranks.index(min(self.ranks))


class Levels:
    """The tables of a policy."""

    def __init__(self, policy: Policy) -> None:
        self._unmanaged = policy.unmanaged_level
        self._own = LevelTable(policy.levels)
        self._classes = {name: LevelTable(levels) for name, levels in policy.classes}

    def of(self, application: str, attained_service_us: int, *, managed: bool) -> tuple[LevelTable, int]:
        """(table, level) of a call whose program has attained so much (Algorithm 1, line 'arrivals')."""
        if not managed:
            return self._own, self._unmanaged
        table = self._classes.get(application, self._own)
        return table, level_of(table.levels, attained_service_us)
