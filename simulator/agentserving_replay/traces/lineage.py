"""Which calls a call came after, read off when calls began and ended. Pure.

A call that was told its parents came after those. Every other one came after the calls of its thread that had ended
before it began and that no other of them came after (the *frontier*: the last call of a chain, all calls of a wave that
ran side by side); the first of a thread after those of its program, the first of a sub-agent after those of its caller.
And what a sub-agent has ended since is waited for by its caller's next call. So every edge is a true "ended before it
began"; that two calls only happened to follow each other cannot be told from the outside.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ran:
    """A call that has ended. Instants in microseconds; `end_us` is after `admit_us`, and not later than its client knew
    of the end."""

    call_id: str
    program_id: str
    thread_id: str
    engine_id: str
    parents: tuple[str, ...]
    admit_us: int
    end_us: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def context_tokens(self) -> int:
        """Prompt and output."""
        return self.prompt_tokens + self.output_tokens


class _Ended:
    """Some calls (indices) by the time of their end."""

    def __init__(self, calls: Sequence[Ran], of: Iterable[int]) -> None:
        self._calls = calls
        self._by_end = sorted(of, key=lambda index: calls[index].end_us)
        self._ends = [calls[index].end_us for index in self._by_end]
        # The latest beginning among those up to here: whatever ended before it has been followed by somebody.
        self._begun: list[int] = []
        for index in self._by_end:
            before = self._begun[-1] if self._begun else 0
            self._begun.append(max(before, calls[index].admit_us))

    def frontier(self, at: int) -> list[int]:
        """Those that had ended when call `at` began, and that none of them came after."""
        count = bisect_right(self._ends, self._calls[at].admit_us)
        latest = self._begun[count - 1] if count else 0
        found: list[int] = []
        for place in range(count - 1, -1, -1):
            if self._ends[place] <= latest:
                break
            found.append(self._by_end[place])
        return found


class Lineage:
    """Of one tree's calls, which are in the order in which they began. `above`: a program's caller, by program."""

    def __init__(self, calls: Sequence[Ran], above: Mapping[str, str], stand_ins: Mapping[str, Sequence[str]]) -> None:
        self._calls, self._above, self._stand_ins = calls, above, stand_ins
        self._index = {call.call_id: index for index, call in enumerate(calls)}
        programs: dict[str, list[int]] = {}
        threads: dict[tuple[str, str], list[int]] = {}
        for index, call in enumerate(calls):
            programs.setdefault(call.program_id, []).append(index)
            threads.setdefault((call.program_id, call.thread_id), []).append(index)
        self._programs = {key: _Ended(calls, of) for key, of in programs.items()}
        self._threads = {key: _Ended(calls, of) for key, of in threads.items()}
        self._below: dict[str, list[str]] = {}
        for program_id, caller in above.items():
            self._below.setdefault(caller, []).append(program_id)

    def parents(self, at: int) -> list[int]:
        """Calls that call `at` came after, in order."""
        call = self._calls[at]
        own = self._told(at) or self.before(at) or self._callers(at)
        latest = max((self._calls[index].end_us for index in own), default=0)
        joined = [
            index
            for below in self._below.get(call.program_id, ())
            if below in self._programs
            for index in self._programs[below].frontier(at)
            if self._calls[index].end_us > latest
        ]
        return sorted({*own, *joined})

    def before(self, at: int) -> list[int]:
        """What came before it in its thread, else in its program."""
        call = self._calls[at]
        thread = self._threads[call.program_id, call.thread_id].frontier(at)
        return thread or self._programs[call.program_id].frontier(at)

    def _told(self, at: int) -> list[int]:
        """Parents as they were told; for one that did nothing, those that it came after itself."""
        found: list[int] = []
        asked, seen = list(self._calls[at].parents), set[str]()
        while asked:
            name = asked.pop()
            if name in seen:
                continue
            seen.add(name)
            index = self._index.get(name)
            if index is None:
                asked += self._stand_ins.get(name, ())
            elif index < at:
                found.append(index)
        return found

    def _callers(self, at: int) -> list[int]:
        """For the first call of a sub-agent: its caller's last ones."""
        program_id, seen = self._calls[at].program_id, set[str]()
        while (program_id := self._above.get(program_id, "")) and program_id not in seen:
            seen.add(program_id)
            if program_id in self._programs and (found := self._programs[program_id].frontier(at)):
                return found
        return []
