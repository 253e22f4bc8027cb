"""What all APIs need for an answer: who gives it, its usage, its parts so far, events. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentserving_simulator.answers.asked import Asked
from agentserving_simulator.answers.plan import Part, PartKind, Piece, Plan

STOPPED, LENGTH, ABORTED = "stop", "length", "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """`unique`: 32 hexadecimal digits, from which the ids of an answer are made; `created`: Unix time, seconds.

    `response_id`: the id that a response must have; "" = any.
    """

    unique: str
    model: str
    created: int
    response_id: str = ""

    def call_id(self, choice: int, part: int) -> str:
        """Of a tool call; unlike those of any other answer, by which runs are told apart."""
        return f"call_{self.unique[:24]}{choice:02x}{part:02x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request; a prompt counts once, however many answers it has."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int


@dataclass(slots=True)
class Answer:
    """One choice as far as it was generated; `reason`: STOPPED, LENGTH or ABORTED, "" before its end."""

    plan: Plan
    reason: str = ""
    texts: dict[int, str] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        """A token more."""
        self.texts[piece.part] = self.texts.get(piece.part, "") + piece.text

    def parts(self) -> list[tuple[int, Part, str]]:
        """(number, part, its text) of those that have begun."""
        return [(number, self.plan.parts[number], text) for number, text in self.texts.items()]

    def text(self, kind: PartKind) -> str:
        """All text of the parts of a kind, in order."""
        return "".join(text for _, part, text in self.parts() if part.kind is kind)

    @property
    def called(self) -> bool:
        """Whether it ended after its tool calls."""
        return self.reason == STOPPED and self.plan.calls_tools and not self.plan.stop


class Writer(Protocol):
    """The events of one stream, in the order: begin, pieces and ends, end."""

    def begin(self, usage: Usage) -> Iterable[bytes]:
        """The first token of any choice has been generated, or none will be."""
        ...

    def piece(self, choice: int, piece: Piece) -> Iterable[bytes]:
        """Events for a token of a choice."""
        ...

    def finished(self, choice: int, reason: str) -> Iterable[bytes]:
        """Events for the end of a choice."""
        ...

    def end(self, usage: Usage) -> Iterable[bytes]:
        """Events after all choices have ended."""
        ...


class WriterFactory(Protocol):
    def __call__(self, heading: Heading, asked: Asked, plans: list[Plan]) -> Writer:
        """For one stream."""
        ...


class Whole(Protocol):
    """Answers as one document."""

    def __call__(self, heading: Heading, asked: Asked, answers: list[Answer], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        ...


def data(document: Mapping[str, Any]) -> bytes:
    """An event of completions and chat."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def named(document: Mapping[str, Any]) -> bytes:
    """An event that has its type as its name: responses and messages."""
    return b"event: " + str(document["type"]).encode() + b"\n" + data(document)
