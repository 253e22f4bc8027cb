"""What programs of a control plane should be like, told from the answers to its RPCs alone: no indexes, no store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

Key = tuple[str, str]


class State(Enum):
    """Of a program; a paused one is open."""

    OPEN = "open"
    CLOSED = "closed"
    CANCELLED = "cancelled"


@dataclass
class Call:
    """An admitted call. `service_us`: what its engine has said last; `over`: it has said its last word."""

    tenant: str
    program: str
    call_id: str
    attempt: int
    service_us: int = 0
    over: bool = False


@dataclass
class Program:
    """`parent` "" = a root. Only roots are paused, and have budgets."""

    state: State = State.OPEN
    parent: str = ""
    root: str = ""
    paused: bool = False
    # Engine time of the whole tree; 0 = no limit. Additions by their ids: the program that was named, and how much.
    limit_us: int = 0
    additions: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass
class Model:
    """Programs by (tenant, id), and all calls ever admitted."""

    programs: dict[Key, Program] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def root(self, key: Key) -> Program:
        """The root of a program."""
        return self.programs[key[0], self.programs[key].root]

    def tree(self, key: Key) -> Iterator[Program]:
        """A program and all below it."""
        yield self.programs[key]
        for below, program in list(self.programs.items()):
            if below[0] == key[0] and program.parent == key[1]:
                yield from self.tree(below)

    def open_refusal(self, key: Key, parent: str, limit_us: int = 0) -> str:
        """Reason for which OpenProgram is refused; empty when it is not."""
        if limit_us and parent:
            return "BUDGET_OF_SUB_AGENT"
        known = self.programs.get(key)
        if known is not None:
            return "" if known.state is State.CANCELLED else "PROGRAM_EXISTS"
        if parent == key[1]:
            return "CYCLIC_PARENT"
        if parent and (key[0], parent) not in self.programs:
            return "PARENT_NOT_FOUND"
        return "PROGRAM_CANCELLED" if parent and self.programs[key[0], parent].state is State.CANCELLED else ""

    def opened(self, key: Key, parent: str, limit_us: int = 0) -> None:
        """OpenProgram, or a call with a claim, has succeeded."""
        if key in self.programs:
            self.programs[key].state = State.OPEN
        else:
            root = self.programs[key[0], parent].root if parent else key[1]
            self.programs[key] = Program(parent=parent, root=root)
        program = self.programs[key]
        if program.root == key[1] and not program.limit_us:
            program.limit_us = limit_us

    def call_refusal(self, key: Key, *, implicit: bool, spent_us: int) -> str:
        """Reason for which a call of a program is refused. `spent_us`: what its tree has used."""
        known = self.programs.get(key)
        if known is None:
            return "" if implicit else "PROGRAM_NOT_FOUND"
        if known.state is State.CANCELLED:
            return "PROGRAM_CANCELLED"
        if not implicit and known.state is not State.OPEN:
            return "PROGRAM_CLOSED"
        return "PROGRAM_BUDGET_SPENT" if 0 < self.root(key).limit_us <= spent_us else ""

    def pause_refusal(self, key: Key) -> str:
        """Reason for which a pause is refused: the program, or its root, has ended."""
        if key not in self.programs:
            return "PROGRAM_NOT_FOUND"
        for program in (self.programs[key], self.root(key)):
            if program.state is not State.OPEN:
                return "PROGRAM_CANCELLED" if program.state is State.CANCELLED else "PROGRAM_CLOSED"
        return ""

    def resume_refusal(self, key: Key, add_us: int, addition_id: str, spent_us: int) -> str:
        """Reason for which ResumeProgram is refused."""
        if key not in self.programs:
            return "PROGRAM_NOT_FOUND"
        root = self.root(key)
        known = root.additions.get(addition_id)
        if known is not None and known != (key[1], add_us):
            return "IDEMPOTENCY_KEY_REUSED"
        if add_us and not root.limit_us:
            return "NO_SUCH_BUDGET"
        return "BUDGET_SPENT" if 0 < root.limit_us + add_us * (known is None) <= spent_us else ""

    def resumed(self, key: Key, add_us: int, addition_id: str) -> None:
        """ResumeProgram has succeeded."""
        root = self.root(key)
        root.paused = False
        if addition_id not in root.additions:
            root.limit_us += add_us
            if addition_id and add_us:
                root.additions[addition_id] = (key[1], add_us)

    def close(self, key: Key) -> None:
        """CloseProgram has succeeded; the end of a root ends its pause."""
        program = self.programs[key]
        if program.state is State.OPEN:
            program.state, program.paused = State.CLOSED, False

    def cancel(self, key: Key) -> None:
        """CancelProgram has succeeded."""
        for program in self.tree(key):
            program.state, program.paused = State.CANCELLED, False

    def service_us(self, key: Key, *, of_tree: bool = False, over: bool = False) -> int:
        """What engines have said about all calls of a program, or of its whole tree; `over`: of ended calls only."""
        root = self.programs[key].root
        return sum(
            call.service_us
            for call in self.calls
            if call.tenant == key[0]
            and (call.over or not over)
            and (self.programs[key[0], call.program].root == root if of_tree else call.program == key[1])
        )
