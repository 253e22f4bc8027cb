"""An answer before it is generated: its parts, and what a client sees of each token. Pure.

The engine generates tokens at the speed of its cost model and knows nothing of parts. What belongs to no part (the
words around a tool call) is generated and counted, but not shown, as with a real model's parsers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from agentserving_simulator.answers.conversation import CALL_BEGINS, CALL_ENDS
from agentserving_simulator.tokens import tokenize, word

_THINK_BEGINS, _THINK_ENDS = " <think>", " </think>"


class PartKind(Enum):
    """What a part of an answer is."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class Part:
    """`text` of a call are its arguments."""

    kind: PartKind
    text: str = ""
    name: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a client sees of a token: more text of part number `part`, or only that it has begun."""

    part: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`tokens`: all of them, with what is shown of each in `pieces`; empty = placeholder words, shown as they are.

    It ends by itself after `ends_after` tokens, or never. `stop`: the text of the request that ends it.
    """

    parts: tuple[Part, ...]
    tokens: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()
    ends_after: int | None = None
    stop: str = ""

    def piece(self, index: int, token: str) -> Piece:
        """What is shown of the token at `index`."""
        return self.pieces[index] if self.pieces else Piece(0, token)

    @property
    def calls_tools(self) -> bool:
        """Whether it has a tool call."""
        return any(part.kind is PartKind.CALL for part in self.parts)


def of_parts(parts: Sequence[Part], stop: Sequence[str] = ()) -> Plan:
    """The plan of an answer that is known, cut before the first of `stop` in its text."""
    shown: list[Part] = []
    tokens: list[str] = []
    pieces: list[Piece] = []
    found = ""
    for part in parts:
        number, visible = len(shown), part.text
        if part.kind is PartKind.TEXT:
            visible, found = _cut(part.text, stop)
        shown.append(replace(part, text=visible))
        for raw, begin, end in _segments(part, visible + found):
            _add(tokens, pieces, number, raw, begin, min(end, begin + len(visible)))
        if found:
            break
    return Plan(
        parts=tuple(shown), tokens=tuple(tokens), pieces=tuple(pieces), ends_after=len(tokens), stop=found
    )  # fmt: skip


def of_words(ends_after: int | None, stop: Sequence[str], seed: int, most: int) -> Plan:
    """Placeholder words; with `stop`, those up to it, of at most `most`."""
    endless = Plan(parts=(Part(PartKind.TEXT),), ends_after=ends_after)
    if not stop:
        return endless
    text = "".join(word(seed, index) for index in range(most if ends_after is None else min(most, ends_after)))
    plan = of_parts([Part(PartKind.TEXT, text)], stop)
    return plan if plan.stop else endless


def _cut(text: str, stop: Sequence[str]) -> tuple[str, str]:
    """The text before the first of `stop`, and that one."""
    places = [(text.index(each), -len(each), each) for each in stop if each in text]
    if not places:
        return text, ""
    place, _, found = min(places)
    return text[:place], found


def _segments(part: Part, text: str) -> Iterable[tuple[str, int, int]]:
    """Texts that begin with a space, each with the range of it that is shown."""
    space = "" if text[:1].isspace() else " "
    main = (f"{space}{text}", len(space), len(space) + len(text))
    match part.kind:
        case PartKind.TEXT:
            yield main
        case PartKind.REASONING:
            yield from ((_THINK_BEGINS, 0, 0), main, (_THINK_ENDS, 0, 0))
        case PartKind.CALL:
            yield from ((CALL_BEGINS, 0, 0), (f" {part.name}", 0, 0), main, (CALL_ENDS, 0, 0))


def _add(tokens: list[str], pieces: list[Piece], part: int, raw: str, begin: int, end: int) -> None:
    at = 0
    for token in tokenize(raw):
        tokens.append(token)
        pieces.append(Piece(part, token[max(0, begin - at) : max(0, end - at)]))
        at += len(token)
