"""From endings, as a control plane tells them, to programs of a trace: what `agentserving record` does. Pure.

A tree of programs (a root and its sub-agents) is given out when the root and all that is known below it have been
closed and their last calls have ended. Left out, and counted: trees that had begun before the recording, since nobody
knows what they did until then, and calls for which no engine computed a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from agentserving.client.values import ClosedProgram, EndedCall, Endings, Outcome, ProgramOrigin
from agentserving_controlplane.table.rows import cut

from agentserving_replay.traces.file import MAX_TOKENS, CallLine, ProgramLine
from agentserving_replay.traces.lineage import Lineage, Ran
from agentserving_replay.traces.sharing import bases, disproved, shared

# Characters of a program id, and bytes of a thread's, that the process table takes.
MAX_ID = 128
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime | None) -> int:
    """Since the epoch; 0 for an instant that was not told."""
    return 0 if instant is None else (instant - _EPOCH) // timedelta(microseconds=1)


@dataclass(slots=True)
class _Member:
    """A program of a tree."""

    program_id: str
    name: str
    parent: str
    open_us: int
    closed: bool = False
    to_end: int = 0


@dataclass(slots=True)
class Tree:
    """A root program and its sub-agents, as they are recorded."""

    root: str
    open_us: int
    members: dict[str, _Member] = field(default_factory=dict)
    calls: list[Ran] = field(default_factory=list)
    # Parents of calls that did nothing.
    stand_ins: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """True when nothing more will come."""
        return self.root in self.members and all(m.closed and not m.to_end for m in self.members.values())


@dataclass(slots=True)
class Counts:
    """Of a recording. `lost`: endings that the control plane did not keep for us. `again`: programs that went on after
    their end; what they did then is a program of its own."""

    programs: int = 0
    calls: int = 0
    still_open: int = 0
    again: int = 0
    began_before: int = 0
    calls_before: int = 0
    calls_without_tokens: int = 0
    lost: int = 0
    restarts: int = 0


class Recorder:
    """Endings in, lines of a trace out. Begins with the first of them."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.begin_us = 0
        self._trees: dict[str, Tree] = {}
        self._before: set[str] = set()
        # Ids that have been written, and how many like them.
        self._written: dict[str, int] = {}

    @property
    def open_programs(self) -> int:
        """Programs that have not been written yet."""
        return sum(len(tree.members) for tree in self._trees.values())

    def take(self, told: Endings) -> Iterator[list[ProgramLine | CallLine]]:
        """Lines of the trees that are whole now."""
        self.counts.lost += told.lost
        self.counts.restarts += told.restarted
        if not self.begin_us:
            self.begin_us = microseconds(told.send_time)
        for ending in told.endings:
            tree = self._tree_of(ending)
            if tree is not None and tree.ended:
                yield from self._give(tree)

    def rest(self) -> Iterator[list[ProgramLine | CallLine]]:
        """Lines of what is still open when the recording ends, as if it had ended then."""
        for tree in list(self._trees.values()):
            self.counts.still_open += len({call.program_id for call in tree.calls})
            yield from self._give(tree)

    def drop_rest(self) -> None:
        """Leaves out what is still open."""
        self.counts.still_open += self.open_programs
        self._trees.clear()

    # -- taking --------------------------------------------------------------------------------------------------

    def _tree_of(self, ending: EndedCall | ClosedProgram) -> Tree | None:
        origin = ending.program
        opened = microseconds(origin.root_open_time)
        if opened < self.begin_us:
            if origin.root_program_id not in self._before:
                self._before.add(origin.root_program_id)
                self.counts.began_before += 1
            self.counts.calls_before += isinstance(ending, EndedCall)
            return None
        tree = self._trees.get(origin.root_program_id)
        if tree is None:
            tree = self._trees[origin.root_program_id] = Tree(origin.root_program_id, opened)
            self.counts.again += origin.program_id in self._written
        member = self._member(tree, origin)
        if isinstance(ending, ClosedProgram):
            member.closed, member.to_end = True, ending.calls_in_flight
        else:
            member.to_end = max(0, member.to_end - 1)
            self._call(tree, ending)
        return tree

    @staticmethod
    def _member(tree: Tree, origin: ProgramOrigin) -> _Member:
        member = tree.members.get(origin.program_id)
        if member is None:
            member = tree.members[origin.program_id] = _Member(
                origin.program_id, origin.name, origin.parent_program_id, microseconds(origin.open_time)
            )
        return member

    def _call(self, tree: Tree, ending: EndedCall) -> None:
        call = ending.call
        completed = ending.outcome is Outcome.COMPLETED
        if call.prompt_tokens < 1 or (call.output_tokens < 1 and not completed):
            self.counts.calls_without_tokens += 1
            tree.stand_ins[call.call_id] = call.parent_call_ids
            return
        admitted = microseconds(call.admit_time)
        # Its client may have known of the end, and have gone on, before the control plane heard of it.
        ended = min(microseconds(ending.end_time), admitted + call.wait_us + call.service_us)
        tree.calls.append(
            Ran(
                call.call_id, ending.program.program_id, call.thread_id, call.engine_id, call.parent_call_ids,
                admitted, max(admitted + 1, ended), min(call.prompt_tokens, MAX_TOKENS),
                call.cached_tokens, max(1, min(call.output_tokens, MAX_TOKENS)),
            )
        )  # fmt: skip

    # -- giving --------------------------------------------------------------------------------------------------

    def _give(self, tree: Tree) -> Iterator[list[ProgramLine | CallLine]]:
        del self._trees[tree.root]
        if not tree.calls:
            return
        names = {program_id: self._name(program_id) for program_id in {tree.root: None, **tree.members}}
        programs = program_lines(tree, names, self.begin_us)
        self.counts.programs += len(programs)
        self.counts.calls += len(tree.calls)
        yield [*programs, *call_lines(tree, names)]

    def _name(self, program_id: str) -> str:
        """The id, or one like it when it has been written before."""
        name = program_id
        while name in self._written:
            self._written[program_id] += 1
            name = f"{program_id[: MAX_ID - 12]}@{self._written[program_id]}"
        self._written[name] = 1
        return name


def program_lines(tree: Tree, names: dict[str, str], begin_us: int) -> list[ProgramLine]:
    """The root and its sub-agents, callers first. One whose caller told of nothing hangs on the root."""
    root = tree.members.get(tree.root)
    lines = [ProgramLine(names[tree.root], _seconds(tree.open_us - begin_us), root.name if root else "")]
    given, waiting = {tree.root}, [m for m in tree.members.values() if m.program_id != tree.root]
    while waiting:
        ready = [m for m in waiting if m.parent in given or m.parent not in tree.members] or waiting
        for member in ready:
            above = member.parent if member.parent in given else tree.root
            arrival_s = _seconds(max(member.open_us, tree.open_us) - begin_us)
            lines.append(ProgramLine(names[member.program_id], arrival_s, member.name, names[above]))
            given.add(member.program_id)
        waiting = [m for m in waiting if m.program_id not in given]
    return lines


def call_lines(tree: Tree, names: dict[str, str]) -> list[CallLine]:
    """Calls in the order in which they began, with what they came after and what they share."""
    calls = sorted(tree.calls, key=lambda call: (call.admit_us, _number(call.call_id)))
    above = {m.program_id: m.parent or tree.root for m in tree.members.values() if m.program_id != tree.root}
    lineage = Lineage(calls, above, tree.stand_ins)
    base_of = bases(calls, lineage)
    alike = disproved(calls, base_of)
    return [_call_line(tree, calls, at, lineage.parents(at), base_of[at], alike, names) for at in range(len(calls))]


def _call_line(
    tree: Tree,
    calls: Sequence[Ran],
    at: int,
    parents: list[int],
    base: int,
    alike: set[str],
    names: dict[str, str],
) -> CallLine:
    call = calls[at]
    opened = tree.members[call.program_id].open_us
    since = max((calls[index].end_us for index in parents), default=max(opened, tree.open_us))
    tokens = shared(call, calls[base] if base >= 0 else None, alike=call.program_id in alike)
    thread = call.thread_id
    if thread and call.program_id != tree.root:
        thread = cut(f"{names[call.program_id]}/{thread}", MAX_ID)
    return CallLine(
        names[call.program_id],
        f"c{at}",
        call.prompt_tokens,
        call.output_tokens,
        [f"c{index}" for index in parents],
        _seconds(max(0, call.admit_us - since)),
        f"c{base}" if base >= 0 and tokens else "",
        tokens,
        thread,
    )


def _number(call_id: str) -> tuple[int, ...]:
    """Of a program's calls, the order of their admission."""
    return tuple(int(part) for part in call_id.split(".")[-2:] if part.isdigit())


def _seconds(us: int) -> float:
    return us / 1_000_000
