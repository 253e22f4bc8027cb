"""What `top` shows and in which order, as the keys of its user have set it. Pure.

Programs are shown as trees: a sub-agent stands below its parent. A tree is placed by its best member, and a filter
keeps the parents of what it finds, so that a sub-agent is never shown without the run that it works for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from agentserving.client.values import Program
from agentserving.contract.ids import ProgramId


class SortBy(StrEnum):
    """The order of trees, and of siblings."""

    URGENCY = "urgency"
    ATTAINED = "attained"
    WAIT = "wait"
    TOKENS = "tokens"
    NAME = "name"


class TreeRow(NamedTuple):
    """A program and how far below its root it stands."""

    program: Program
    depth: int


def received(program: Program) -> int:
    """Attained service, with what its calls in flight have received so far, microseconds."""
    return program.attained_service_us + sum(call.service_us for call in program.calls)


def by_urgency(program: Program) -> tuple[object, ...]:
    """Programs with calls first, running before queued, then by class of service, level and attained service."""
    running = any(call.running for call in program.calls)
    return (
        not program.calls, not running, program.service_class, program.level, received(program), program.program_id,
    )  # fmt: skip


_KEYS: dict[SortBy, Callable[[Program], tuple[Any, ...]]] = {
    SortBy.URGENCY: by_urgency,
    SortBy.ATTAINED: lambda program: (-received(program), program.program_id),
    SortBy.WAIT: lambda program: (-program.wait_us - sum(call.wait_us for call in program.calls), program.program_id),
    SortBy.TOKENS: lambda program: (
        -program.output_tokens - sum(call.output_tokens for call in program.calls), program.program_id,
    ),
    SortBy.NAME: lambda program: (program.name or program.program_id, program.program_id),
}  # fmt: skip


def tree_rows(programs: Iterable[Program], sort: SortBy = SortBy.URGENCY, wanted: str = "") -> list[TreeRow]:
    """All programs as trees, or those with `wanted` in id, name, state, class of service or engine, with the
    programs above them."""
    key, here = _KEYS[sort], {program.program_id: program for program in programs}
    found = {each.program_id for each in here.values() if _contains(each, wanted)}
    for program_id in list(found):
        found.update(_above(here, program_id))
    children: dict[str, list[Program]] = {}
    for program in here.values():
        if program.program_id in found:
            # Where the parent has ended and is not listed, a program stands at the top.
            parent = program.parent_program_id if program.parent_program_id in here else ""
            children.setdefault(parent, []).append(program)

    def best(program: Program) -> tuple[Any, ...]:
        return min([key(program), *map(best, children.get(program.program_id, ()))])

    def below(parent: str, depth: int) -> Iterator[TreeRow]:
        for program in sorted(children.get(parent, ()), key=best):
            yield TreeRow(program, depth)
            yield from below(program.program_id, depth + 1)

    return list(below("", 0))


def _above(here: dict[ProgramId, Program], program_id: ProgramId) -> Iterator[ProgramId]:
    parent = here[program_id].parent_program_id
    while parent in here:
        yield parent
        parent = here[parent].parent_program_id


def _contains(program: Program, wanted: str) -> bool:
    engines = " ".join([*program.engine_ids, *(call.engine_id for call in program.calls)])
    state, text = program.state.name.replace("_", " "), program.service_class.label
    return wanted.lower() in f"{program.program_id}\n{program.name}\n{state}\n{text}\n{engines}".lower()


UP, DOWN, PAGE_UP, PAGE_DOWN = "up", "down", "page up", "page down"
_MOVES = {"k": UP, "j": DOWN, UP: UP, DOWN: DOWN, PAGE_UP: PAGE_UP, PAGE_DOWN: PAGE_DOWN}
ESCAPE, ENTER, ERASE = "\x1b", ("\r", "\n"), ("\x7f", "\b")
MAX_FILTER = 60


@dataclass(slots=True)
class TopView:
    """The state of one `top`."""

    sort: SortBy = SortBy.URGENCY
    wanted: str = ""
    typing: bool = False
    # Rows above the first one that is shown.
    skipped: int = 0
    ended: bool = False

    def press(self, key: str, page: int = 10) -> None:
        """A key: a character, or UP, DOWN, PAGE_UP, PAGE_DOWN. `page`: rows on the screen."""
        if self.typing:
            self._type(key)
        elif key == "q":
            self.ended = True
        elif key == "s":
            orders = list(SortBy)
            self.sort, self.skipped = orders[(orders.index(self.sort) + 1) % len(orders)], 0
        elif key == "/":
            self.typing, self.wanted, self.skipped = True, "", 0
        elif key == ESCAPE:
            self.wanted, self.skipped = "", 0
        elif move := _MOVES.get(key):
            rows = {UP: -1, DOWN: 1, PAGE_UP: -page, PAGE_DOWN: page}[move]
            self.skipped = max(0, self.skipped + rows)

    def _type(self, key: str) -> None:
        if key == ESCAPE:
            self.typing, self.wanted = False, ""
        elif key in ENTER:
            self.typing = False
        elif key in ERASE:
            self.wanted = self.wanted[:-1]
        elif len(key) == 1 and key.isprintable() and len(self.wanted) < MAX_FILTER:
            self.wanted += key

    def shown(self, rows: Sequence[TreeRow], room: int) -> Sequence[TreeRow]:
        """The rows on the screen; the last page stays full."""
        self.skipped = max(0, min(self.skipped, len(rows) - room))
        return rows[self.skipped : self.skipped + room]

    @property
    def help(self) -> str:
        """The last line of the screen."""
        if self.typing:
            return f"filter: {self.wanted}_   (Enter keeps it, Esc ends it)"
        kept = f"filter: {self.wanted} (Esc ends it)   " if self.wanted else ""
        return f"{kept}q quits   s sorts: {self.sort}   / filters   arrows scroll"
