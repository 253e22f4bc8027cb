"""Which calls a call came after, inferred from when calls began and ended. Pure.

A call with declared parents came after those. Every other call came after the calls of its thread that had ended before
it began and that no other such call came after: the *frontier*, which is the last call of a chain, or all calls of a
wave that ran in parallel. The first call of a thread came after the frontier of its program, the first call of a
sub-agent after that of its caller. A caller's next call waits for what its sub-agents have ended in the meantime.

So every edge is a true "ended before it began". That two calls merely happened to follow each other cannot be seen from
outside.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentserving.contract.ids import CallId, EngineId, ProgramId


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """A call that has ended. Instants in microseconds.

    `end_us` is later than `admit_us`, and no later than when the call's client learned of the end.
    """

    call_id: CallId
    program_id: ProgramId
    thread_id: str
    engine_id: EngineId
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


class _ByEnd:
    """Calls (as indices) ordered by their end."""

    def __init__(self, calls: Sequence[RecordedCall], members: Iterable[int]) -> None:
        self._calls = calls
        self._members = sorted(members, key=lambda index: calls[index].end_us)
        self._ends = [calls[index].end_us for index in self._members]
        # The latest admission among the members up to each place: whatever ended before it has a successor.
        self._latest_admits: list[int] = []
        for index in self._members:
            before = self._latest_admits[-1] if self._latest_admits else 0
            self._latest_admits.append(max(before, calls[index].admit_us))

    def frontier(self, at: int) -> list[int]:
        """Members that had ended when call `at` began and that no other such member came after."""
        count = bisect_right(self._ends, self._calls[at].admit_us)
        latest = self._latest_admits[count - 1] if count else 0
        frontier: list[int] = []
        for place in range(count - 1, -1, -1):
            if self._ends[place] <= latest:
                break
            frontier.append(self._members[place])
        return frontier


class Lineage:
    """The order of one tree's calls.

    `calls` in the order in which they began; `above` maps a program to its caller; `stand_ins` maps a call that is not
    in the trace to its own parents.
    """

    def __init__(
        self,
        calls: Sequence[RecordedCall],
        above: Mapping[ProgramId, ProgramId],
        stand_ins: Mapping[str, Sequence[str]],
    ) -> None:
        self._calls, self._above, self._stand_ins = calls, above, stand_ins
        self._index: dict[str, int] = {call.call_id: index for index, call in enumerate(calls)}
        programs: dict[ProgramId, list[int]] = {}
        threads: dict[tuple[ProgramId, str], list[int]] = {}
        for index, call in enumerate(calls):
            programs.setdefault(call.program_id, []).append(index)
            threads.setdefault((call.program_id, call.thread_id), []).append(index)
        self._programs = {key: _ByEnd(calls, members) for key, members in programs.items()}
        self._threads = {key: _ByEnd(calls, members) for key, members in threads.items()}
        self._below: dict[ProgramId, list[ProgramId]] = {}
        for program_id, caller in above.items():
            self._below.setdefault(caller, []).append(program_id)

    def parents(self, at: int) -> list[int]:
        """Calls that call `at` came after, in order."""
        call = self._calls[at]
        own = self._declared(at) or self.before(at) or self._callers(at)
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
        """The frontier of the call's thread, or of its program when the thread begins with it."""
        call = self._calls[at]
        thread = self._threads[call.program_id, call.thread_id].frontier(at)
        return thread or self._programs[call.program_id].frontier(at)

    def _declared(self, at: int) -> list[int]:
        """Declared parents; a parent without tokens is replaced by its own parents."""
        indices: list[int] = []
        names, seen = list(self._calls[at].parents), set[str]()
        while names:
            name = names.pop()
            if name in seen:
                continue
            seen.add(name)
            index = self._index.get(name)
            if index is None:
                names += self._stand_ins.get(name, ())
            elif index < at:
                indices.append(index)
        return indices

    def _callers(self, at: int) -> list[int]:
        """For the first call of a sub-agent: the frontier of the nearest caller that had one."""
        program_id, seen = self._above.get(self._calls[at].program_id), set[ProgramId]()
        while program_id and program_id not in seen:
            seen.add(program_id)
            if program_id in self._programs and (frontier := self._programs[program_id].frontier(at)):
                return frontier
            program_id = self._above.get(program_id)
        return []
