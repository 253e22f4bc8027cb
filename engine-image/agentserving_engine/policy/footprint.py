"""The distinct blocks of many contexts: what several contexts share counts once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Context = Sequence[object]


class Footprint:
    """Counts references to the units of contexts (blocks, or runs of blocks); `size_of` gives the blocks of a unit."""

    def __init__(self, size_of: Callable[[object], int]) -> None:
        self._size_of = size_of
        self._references: dict[object, int] = {}
        self.blocks = 0

    def add(self, context: Context) -> None:
        """Counts a context; units that it shares with others cost nothing more."""
        references = self._references
        for unit in context:
            known = references.get(unit, 0)
            references[unit] = known + 1
            if not known:
                self.blocks += self._size_of(unit)

    def drop(self, context: Context) -> None:
        """Counts a context no more that was added."""
        references = self._references
        for unit in context:
            left = references[unit] - 1
            if left:
                references[unit] = left
            else:
                del references[unit]
                self.blocks -= self._size_of(unit)

    def missing(self, contexts: Iterable[Context]) -> int:
        """Blocks that adding these contexts would add."""
        references = self._references
        return sum(map(self._size_of, {unit for context in contexts for unit in context if unit not in references}))

    def released(self, contexts: Iterable[Context]) -> int:
        """Blocks that dropping these contexts, all of which were added, would release."""
        mine: dict[object, int] = {}
        for context in contexts:
            for unit in context:
                mine[unit] = mine.get(unit, 0) + 1
        references = self._references
        return sum(self._size_of(unit) for unit, count in mine.items() if references[unit] == count)
