"""Turns the endings that a control plane reports into programs of a trace, for `agentserving record`. Pure.

A tree of programs (a root and its sub-agents) is emitted when the root and everything known below it have been closed
and their last calls have ended. Trees that began before the recording are skipped and counted, because their earlier
calls are unknown; so are calls for which no engine computed a token. A recording covers one tenant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from agentserving.client.values import ClosedProgram, EndedCall, Endings, Outcome, ProgramOrigin
from agentserving.contract.ids import CallId, EngineId, ProgramId
from agentserving.contract.service_class import ServiceClass
from agentserving_controlplane.table.rows import cut

from agentserving_replay.traces.file import MAX_TOKENS, CallLine, ProgramLine
from agentserving_replay.traces.lineage import Lineage, RecordedCall
from agentserving_replay.traces.sharing import bases, disproved, shared

# Longest program id in characters, and thread id in bytes, that the process table accepts.
MAX_ID = 128
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime | None) -> int:
    """Microseconds since the epoch; 0 for a missing instant."""
    return 0 if instant is None else (instant - _EPOCH) // timedelta(microseconds=1)


@dataclass(slots=True, kw_only=True)
class Member:
    """A program of a tree."""

    program_id: ProgramId
    name: str
    # Empty for the root.
    parent: ProgramId
    open_us: int
    closed: bool = False
    # Calls that were in flight when the program was closed and have not ended.
    calls_in_flight: int = 0


@dataclass(slots=True, kw_only=True)
class Tree:
    """A root program and its sub-agents while they are recorded."""

    root: ProgramId
    open_us: int
    service_class: ServiceClass = ServiceClass.STANDARD
    members: dict[ProgramId, Member] = field(default_factory=dict)
    calls: list[RecordedCall] = field(default_factory=list)
    # Parents of calls without tokens, which take their place.
    stand_ins: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """True when all known programs are closed and their calls have ended."""
        return self.root in self.members and all(m.closed and not m.calls_in_flight for m in self.members.values())


@dataclass(slots=True)
class Counts:
    """What has been recorded so far."""

    programs: int = 0
    calls: int = 0
    still_open: int = 0
    # Programs that continued after they had been written; the rest of their calls is a program of its own.
    reopened: int = 0
    # Trees that began before the recording, and their calls during it.
    began_before: int = 0
    calls_before: int = 0
    calls_without_tokens: int = 0
    # Endings that the control plane dropped before they were read.
    lost: int = 0
    restarts: int = 0


class Recorder:
    """Takes endings, emits lines of a trace. The recording begins with the first endings."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.begin_us = 0
        self._trees: dict[str, Tree] = {}
        self._before: set[str] = set()
        # Ids that have been written, and how many variants of each.
        self._written: dict[str, int] = {}

    @property
    def open_programs(self) -> int:
        """Programs that have not been written yet."""
        return sum(len(tree.members) for tree in self._trees.values())

    def take(self, endings: Endings) -> Iterator[list[ProgramLine | CallLine]]:
        """Adds endings; emits the lines of every tree that is complete now."""
        self.counts.lost += endings.lost
        self.counts.restarts += endings.restarted
        if not self.begin_us:
            self.begin_us = microseconds(endings.send_time)
        for ending in endings.endings:
            tree = self._tree_of(ending)
            if tree is not None and tree.ended:
                yield from self._emit(tree)

    def rest(self) -> Iterator[list[ProgramLine | CallLine]]:
        """Emits the lines of trees that are open when the recording ends, as if they had ended then."""
        for tree in list(self._trees.values()):
            self.counts.still_open += len({call.program_id for call in tree.calls})
            yield from self._emit(tree)

    def drop_rest(self) -> None:
        """Discards trees that are still open."""
        self.counts.still_open += self.open_programs
        self._trees.clear()

    # -- taking --------------------------------------------------------------------------------------------------

    def _tree_of(self, ending: EndedCall | ClosedProgram) -> Tree | None:
        origin = ending.program
        opened_us, root = microseconds(origin.root_open_time), ProgramId(origin.root_program_id)
        if opened_us < self.begin_us:
            if root not in self._before:
                self._before.add(root)
                self.counts.began_before += 1
            self.counts.calls_before += isinstance(ending, EndedCall)
            return None
        tree = self._trees.get(root)
        if tree is None:
            tree = self._trees[root] = Tree(
                root=root, open_us=opened_us, service_class=origin.service_class or ServiceClass.STANDARD
            )
            self.counts.reopened += origin.program_id in self._written
        member = self._member(tree, origin)
        if isinstance(ending, ClosedProgram):
            member.closed, member.calls_in_flight = True, ending.calls_in_flight
        else:
            member.calls_in_flight = max(0, member.calls_in_flight - 1)
            self._call(tree, ending)
        return tree

    @staticmethod
    def _member(tree: Tree, origin: ProgramOrigin) -> Member:
        program_id = ProgramId(origin.program_id)
        member = tree.members.get(program_id)
        if member is None:
            member = tree.members[program_id] = Member(
                program_id=program_id,
                name=origin.name,
                parent=ProgramId(origin.parent_program_id),
                open_us=microseconds(origin.open_time),
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
        # The client may learn of the end, and go on, before the control plane does.
        ended = min(microseconds(ending.end_time), admitted + call.wait_us + call.service_us)
        tree.calls.append(
            RecordedCall(
                call_id=CallId(call.call_id),
                program_id=ProgramId(ending.program.program_id),
                thread_id=call.thread_id,
                engine_id=EngineId(call.engine_id),
                parents=call.parent_call_ids,
                admit_us=admitted,
                end_us=max(admitted + 1, ended),
                prompt_tokens=min(call.prompt_tokens, MAX_TOKENS),
                cached_tokens=call.cached_tokens,
                output_tokens=max(1, min(call.output_tokens, MAX_TOKENS)),
            )
        )

    # -- emitting --------------------------------------------------------------------------------------------------

    def _emit(self, tree: Tree) -> Iterator[list[ProgramLine | CallLine]]:
        del self._trees[tree.root]
        if not tree.calls:
            return
        names = {program_id: self._name(program_id) for program_id in {tree.root: None, **tree.members}}
        programs = program_lines(tree, names, self.begin_us)
        self.counts.programs += len(programs)
        self.counts.calls += len(tree.calls)
        yield [*programs, *call_lines(tree, names)]

    def _name(self, program_id: str) -> str:
        """The id, or a variant of it when it has been written before."""
        name = program_id
        while name in self._written:
            self._written[program_id] += 1
            name = f"{program_id[: MAX_ID - 12]}@{self._written[program_id]}"
        self._written[name] = 1
        return name


def program_lines(tree: Tree, names: Mapping[ProgramId, str], begin_us: int) -> list[ProgramLine]:
    """The root and its sub-agents, callers first. Sub-agents of an unknown caller are attached to the root."""
    root = tree.members.get(tree.root)
    lines = [ProgramLine(names[tree.root], _seconds(tree.open_us - begin_us), root.name if root else "")]
    if tree.service_class is not ServiceClass.STANDARD:
        lines[0].service_class = tree.service_class.label
    written, waiting = {tree.root}, [m for m in tree.members.values() if m.program_id != tree.root]
    while waiting:
        ready = [m for m in waiting if m.parent in written or m.parent not in tree.members] or waiting
        for member in ready:
            above = member.parent if member.parent in written else tree.root
            arrival_s = _seconds(max(member.open_us, tree.open_us) - begin_us)
            lines.append(ProgramLine(names[member.program_id], arrival_s, member.name, names[above]))
            written.add(member.program_id)
        waiting = [m for m in waiting if m.program_id not in written]
    return lines


def in_order(calls: Iterable[RecordedCall]) -> list[RecordedCall]:
    """Calls in the order in which they began."""
    return sorted(calls, key=lambda call: (call.admit_us, _number(call.call_id)))


def call_lines(
    tree: Tree, names: Mapping[ProgramId, str], known: Sequence[tuple[int, int]] | None = None
) -> list[CallLine]:
    """Calls in the order in which they began, with their parents and what they share.

    `known`: for each call in that order the call whose context it repeats (-1 = none), and how many tokens of it; None:
    estimated (sharing.py).
    """
    calls = in_order(tree.calls)
    above = {m.program_id: m.parent or tree.root for m in tree.members.values() if m.program_id != tree.root}
    lineage = Lineage(calls, above, tree.stand_ins)
    sharing = known if known is not None else _estimated(calls, lineage)
    return [_call_line(tree, calls, at, lineage.parents(at), *sharing[at], names) for at in range(len(calls))]


def _estimated(calls: Sequence[RecordedCall], lineage: Lineage) -> list[tuple[int, int]]:
    base_of = bases(calls, lineage)
    alike = disproved(calls, base_of)
    return [
        (base, shared(call, calls[base] if base >= 0 else None, alike=call.program_id in alike))
        for call, base in zip(calls, base_of, strict=True)
    ]


def _call_line(
    tree: Tree,
    calls: Sequence[RecordedCall],
    at: int,
    parents: list[int],
    base: int,
    tokens: int,
    names: Mapping[ProgramId, str],
) -> CallLine:
    call = calls[at]
    opened = tree.members[call.program_id].open_us
    since = max((calls[index].end_us for index in parents), default=max(opened, tree.open_us))
    thread = call.thread_id
    if thread and call.program_id != tree.root:
        thread = cut(f"{names[call.program_id]}/{thread}", MAX_ID)
    return CallLine(
        program=names[call.program_id],
        call=f"c{at}",
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        after=[f"c{index}" for index in parents],
        gap_s=_seconds(max(0, call.admit_us - since)),
        extends=f"c{base}" if base >= 0 and tokens else "",
        shared_tokens=tokens,
        thread=thread,
    )


def _number(call_id: str) -> tuple[int, ...]:
    """Order of admission within a program: epoch and number of the call id."""
    return tuple(int(part) for part in call_id.split(".")[-2:] if part.isdigit())


def _seconds(us: int) -> float:
    return us / 1_000_000
