"""Which data-parallel rank runs a call: that of its program, with the program's context in its cache. Pure.

Ranks have caches of their own, so a program stays on its rank as long as it makes calls. A new one goes to the rank
with the least to do. All requests of a call (`n`, several prompts) have one HTTP request and therefore one rank.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from agentserving.contract.ids import ProgramKey

# vLLM takes the rank of a request from this header, on all of its APIs.
RANK_HEADER = b"x-data-parallel-rank"
# Without a call for so long, a program is placed again: its context has given way to others by then.
IDLE_US = 600_000_000
# Programs that are remembered; the longest idle is forgotten first.
MAX_PROGRAMS = 65_536


@dataclass(slots=True)
class _Program:
    rank: int
    open_calls: int = 0
    last_us: int = 0

    @property
    def load(self) -> int:
        """A program between two calls counts like one with a call: it comes back."""
        return max(1, self.open_calls)


class Ranks:
    """Programs on the ranks of one engine. Times are microseconds of one monotonic clock."""

    def __init__(self, count: int) -> None:
        self._programs: OrderedDict[ProgramKey, _Program] = OrderedDict()
        # Programs, each with at least one call, and calls without a program.
        self._load = [0] * count

    def begin(self, program: ProgramKey | None, now_us: int) -> int:
        """The rank that runs a call. `program`: the root program; None for a call that belongs to none."""
        self._forget_idle(now_us)
        if program is None:
            rank = self._least_loaded()
            self._load[rank] += 1
            return rank
        found = self._programs.get(program)
        if found is None:
            found = self._programs[program] = _Program(self._least_loaded())
            self._load[found.rank] += found.load
        self._change(program, found, 1, now_us)
        return found.rank

    def end(self, program: ProgramKey | None, rank: int, now_us: int) -> None:
        """A call that `begin` has placed is over."""
        if program is None:
            self._load[rank] -= 1
        elif (found := self._programs.get(program)) is not None:
            self._change(program, found, -1, now_us)

    def _least_loaded(self) -> int:
        return self._load.index(min(self._load))

    def _change(self, program: ProgramKey, found: _Program, calls: int, now_us: int) -> None:
        before = found.load
        found.open_calls += calls
        found.last_us = now_us
        self._load[found.rank] += found.load - before
        self._programs.move_to_end(program)

    def _forget_idle(self, now_us: int) -> None:
        """Looks at the program that has been silent longest; each later one is looked at in its turn."""
        while self._programs:
            program, found = next(iter(self._programs.items()))
            if now_us - found.last_us < IDLE_US and len(self._programs) <= MAX_PROGRAMS:
                return
            if found.open_calls:
                # A call that has run for all that time: the program is looked at again after as long.
                self._change(program, found, 0, now_us)
                return
            del self._programs[program]
            self._load[found.rank] -= found.load
