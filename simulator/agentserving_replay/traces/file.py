"""Programs in a file: JSON lines, one a program and one a call, in any order that names nothing before it is there.

    {"recording": "2026-11-24T09:00:00Z", "engines": 4, "max_num_seqs": 48, "balancer": "prefix_aware", "policy": {...}}
    {"program": "p1", "name": "chatbot", "arrival_s": 0.0}
    {"program": "p1", "call": "c1", "prompt_tokens": 300, "output_tokens": 120}
    {"program": "p1", "call": "c2", "after": ["c1"], "gap_s": 2.5, "prompt_tokens": 500, "output_tokens": 80,
     "extends": "c1", "shared_tokens": 420}
    {"program": "p1.sub", "parent": "p1", "arrival_s": 3.0}

`after` and `extends` name calls of the same tree. A sub-agent (`parent`) is a program of the tree whose account its
root keeps; calls without `after` are made `gap_s` after the arrival of their program. `shared_tokens` without `extends`
are of the system prompt that programs of one name share. The first line, which a recording has, says what ran the
programs (`policy` as agentserving.contract.policy.to_dict writes it) and is the baseline of a replay. Never text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from agentserving.contract.policy import InvalidPolicyError, Policy, from_dict
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.table.programs import MAX_NAME_BYTES, PROGRAM_ID
from agentserving_controlplane.table.rows import MAX_THREAD_BYTES

from agentserving_replay.traces.trace import Call, Program

MAX_TOKENS = 100_000_000
MAX_ENGINES = 10_000


class TraceError(ValueError):
    """A file that tells of no possible programs; the text begins with the line's number."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


class RecordingLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a recording was made of. `recording`: when it began, UTC."""

    recording: str
    policy: dict[str, Any]
    balancer: Balancer
    engines: int
    max_num_seqs: int


class ProgramLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A program begins; seconds."""

    program: str
    arrival_s: float
    name: str = ""
    parent: str = ""


class CallLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A call; fields as in `trace.Call`, with names for indices."""

    program: str
    call: str
    prompt_tokens: int
    output_tokens: int
    after: list[str] = []
    gap_s: float = 0.0
    extends: str = ""
    shared_tokens: int = 0
    thread: str = ""


@dataclass(slots=True)
class _Tree:
    """A root program as it is read."""

    program_id: str
    name: str
    arrival_s: float
    line: int
    calls: list[Call] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What ran the programs of a recording."""

    policy: Policy
    balancer: Balancer
    engines: int
    max_num_seqs: int


class _Reader:
    """Lines in, trees out."""

    def __init__(self) -> None:
        self.recorded: Recorded | None = None
        # program id -> (its tree, seconds after the root's arrival)
        self.known: dict[str, tuple[_Tree, float]] = {}
        self.trees: list[_Tree] = []

    def recording(self, at: int, told: RecordingLine) -> None:
        """What the file was recorded from."""
        if self.recorded is not None or self.known:
            raise TraceError(at, "recording: only the first line tells of it")
        for name in ("engines", "max_num_seqs"):
            if not 1 <= getattr(told, name) <= MAX_ENGINES:
                raise TraceError(at, f"{name}: must be 1 to {MAX_ENGINES}, got {getattr(told, name)}")
        try:
            policy = from_dict(told.policy)
        except InvalidPolicyError as error:
            raise TraceError(at, str(error)) from error
        self.recorded = Recorded(policy, told.balancer, told.engines, told.max_num_seqs)

    def program(self, at: int, told: ProgramLine) -> None:
        """A program begins."""
        if PROGRAM_ID.fullmatch(told.program) is None:
            raise TraceError(at, f"program: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {told.program!r}")
        if told.program in self.known:
            raise TraceError(at, f"program {told.program!r} is there already")
        if len(told.name.encode()) > MAX_NAME_BYTES:
            raise TraceError(at, f"name: at most {MAX_NAME_BYTES} bytes")
        _not_negative(at, "arrival_s", told.arrival_s)
        if not told.parent:
            tree = _Tree(told.program, told.name, told.arrival_s, at)
            self.trees.append(tree)
            self.known[told.program] = (tree, 0.0)
            return
        above = self.known.get(told.parent)
        if above is None:
            raise TraceError(at, f"parent: no program {told.parent!r} before this line")
        tree = above[0]
        if told.arrival_s < tree.arrival_s:
            raise TraceError(at, f"arrival_s: {told.arrival_s} is before its root's, {tree.arrival_s}")
        self.known[told.program] = (tree, told.arrival_s - tree.arrival_s)

    def call(self, at: int, told: CallLine) -> None:
        """A call of a program that has begun."""
        known = self.known.get(told.program)
        if known is None:
            raise TraceError(at, f"program: no program {told.program!r} before this line")
        tree, late_s = known
        if told.call in tree.index:
            raise TraceError(at, f"call {told.call!r} of {tree.program_id!r} is there already")
        _not_negative(at, "gap_s", told.gap_s)
        if len(told.thread.encode()) > MAX_THREAD_BYTES:
            raise TraceError(at, f"thread: at most {MAX_THREAD_BYTES} bytes")
        for name, least in (("prompt_tokens", 1), ("output_tokens", 1), ("shared_tokens", 0)):
            if not least <= getattr(told, name) <= MAX_TOKENS:
                raise TraceError(at, f"{name}: must be {least} to {MAX_TOKENS}, got {getattr(told, name)}")
        if told.shared_tokens >= told.prompt_tokens:
            raise TraceError(
                at, f"shared_tokens: {told.shared_tokens} leave nothing of {told.prompt_tokens} to compute"
            )
        parents = tuple(self._find(at, tree, "after", name) for name in told.after)
        extends = self._find(at, tree, "extends", told.extends) if told.extends else -1
        if extends >= 0:
            base = tree.calls[extends]
            if told.shared_tokens > base.prompt_tokens + base.output_tokens:
                raise TraceError(
                    at, f"shared_tokens: {told.extends!r} has {base.prompt_tokens + base.output_tokens} tokens only"
                )
        tree.index[told.call] = len(tree.calls)
        gap_s = told.gap_s if parents else told.gap_s + late_s
        thread = told.thread or ("" if told.program == tree.program_id else told.program)
        tree.calls.append(
            Call(told.prompt_tokens, told.output_tokens, parents, gap_s, extends, told.shared_tokens, thread)
        )

    @staticmethod
    def _find(at: int, tree: _Tree, what: str, name: str) -> int:
        index = tree.index.get(name)
        if index is None:
            raise TraceError(at, f"{what}: no call {name!r} of {tree.program_id!r} before this line")
        return index


def encoded(lines: Iterable[RecordingLine | ProgramLine | CallLine]) -> bytes:
    """Lines as they stand in a file."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _not_negative(at: int, name: str, value: float) -> None:
    if not (0 <= value < math.inf):
        raise TraceError(at, f"{name}: must be 0 or more, got {value}")


def read_trace(lines: Iterable[bytes]) -> list[Program]:
    """Programs by arrival; times begin with the first. TraceError says which line is wrong, and how."""
    return read_recording(lines)[1]


def read_recording(lines: Iterable[bytes]) -> tuple[Recorded | None, list[Program]]:
    """The same, and what the file says of the cluster that ran them."""
    reader, at = _Reader(), 0
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = msgspec.json.decode(line)
            if isinstance(fields, dict) and "call" in fields:
                reader.call(at, msgspec.convert(fields, CallLine))
            elif isinstance(fields, dict) and "recording" in fields:
                reader.recording(at, msgspec.convert(fields, RecordingLine))
            else:
                reader.program(at, msgspec.convert(fields, ProgramLine))
        except msgspec.MsgspecError as error:
            raise TraceError(at, str(error)) from error
    if not reader.trees:
        raise TraceError(at, "the file has no programs")
    for tree in reader.trees:
        if not tree.calls:
            raise TraceError(tree.line, f"program {tree.program_id!r} has no calls")
    first = min(tree.arrival_s for tree in reader.trees)
    trees = sorted(reader.trees, key=lambda tree: tree.arrival_s)
    programs = [Program(t.program_id, t.name, t.arrival_s - first, tuple(t.calls)) for t in trees]
    return reader.recorded, programs


def write_trace(programs: Iterable[Program]) -> Iterator[bytes]:
    """Lines that `read_trace` reads back."""
    for program in programs:
        yield encoded([ProgramLine(program.program_id, program.arrival_s, program.name)])
        for index, call in enumerate(program.calls):
            line = CallLine(
                program.program_id,
                f"c{index}",
                call.prompt_tokens,
                call.output_tokens,
                [f"c{parent}" for parent in call.parents],
                call.gap_s,
                f"c{call.extends}" if call.extends >= 0 else "",
                call.shared_tokens,
                call.thread,
            )
            yield encoded([line])
