"""The file format of programs: JSON lines, one per program and one per call; a line refers only to earlier ones.

    {"recording": "2026-11-24T09:00:00Z", "engines": 4, "max_num_seqs": 48, "balancer": "prefix_aware", "policy": {...}}
    {"program": "p1", "name": "chatbot", "arrival_s": 0.0}
    {"program": "p1", "call": "c1", "prompt_tokens": 300, "output_tokens": 120}
    {"program": "p1", "call": "c2", "after": ["c1"], "gap_s": 2.5, "prompt_tokens": 500, "output_tokens": 80,
     "extends": "c1", "shared_tokens": 420}
    {"program": "p1.sub", "parent": "p1", "arrival_s": 3.0}

`after` and `extends` name calls of the same tree of programs. A sub-agent (`parent`) is a program of its root's tree
and is charged to the root's account; calls without `after` are made `gap_s` after the arrival of their program.
`shared_tokens` without `extends` belong to the system prompt that programs of one name share. The first line, which
only recordings have, describes the cluster (`policy` as agentserving.contract.policy.to_dict writes it) and is the
baseline of a replay. A trace never contains text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from agentserving.contract.ids import ProgramId
from agentserving.contract.policy import InvalidPolicyError, Policy, from_dict
from agentserving.contract.service_class import ServiceClass, read_service_class
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.table.programs import MAX_NAME_BYTES, PROGRAM_ID
from agentserving_controlplane.table.rows import MAX_THREAD_BYTES

from agentserving_replay.traces.trace import Call, Program

MAX_TOKENS = 100_000_000
MAX_ENGINES = 10_000
# A year. Longer times are a mistake in the unit.
MAX_SECONDS = 365 * 86_400.0


class TraceError(ValueError):
    """A file that describes no possible programs; the message begins with the number of the offending line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


class RecordingLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The cluster that was recorded. `recording`: when the recording began, UTC."""

    recording: str
    policy: dict[str, Any]
    balancer: Balancer
    engines: int
    max_num_seqs: int


class ProgramLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A program arrives; seconds."""

    program: str
    arrival_s: float
    name: str = ""
    parent: str = ""
    # interactive, standard or batch; of roots.
    service_class: str = ""


class CallLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A call; fields as in `trace.Call`, with names instead of indices."""

    program: str
    call: str
    prompt_tokens: int
    output_tokens: int
    after: list[str] = []
    gap_s: float = 0.0
    extends: str = ""
    shared_tokens: int = 0
    thread: str = ""


@dataclass(slots=True, kw_only=True)
class _Tree:
    """A root program while its lines are read. `line` is the one that it began in."""

    program_id: ProgramId
    name: str
    arrival_s: float
    line: int
    service_class: ServiceClass
    calls: list[Call] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordedCluster:
    """The cluster that a recording was made of."""

    policy: Policy
    balancer: Balancer
    engines: int
    max_num_seqs: int


class _Reader:
    """Collects the trees of a file line by line; every method raises TraceError for a line that it refuses."""

    def __init__(self) -> None:
        self.cluster: RecordedCluster | None = None
        # Program id -> its tree, and the seconds between the root's arrival and its own.
        self.known: dict[str, tuple[_Tree, float]] = {}
        self.trees: list[_Tree] = []

    def recording(self, at: int, line: RecordingLine) -> None:
        """Takes the line that describes the cluster."""
        if self.cluster is not None or self.known:
            raise TraceError(at, "recording: only allowed in the first line")
        for name in ("engines", "max_num_seqs"):
            if not 1 <= getattr(line, name) <= MAX_ENGINES:
                raise TraceError(at, f"{name}: must be 1 to {MAX_ENGINES}, got {getattr(line, name)}")
        try:
            policy = from_dict(line.policy)
        except InvalidPolicyError as error:
            raise TraceError(at, str(error)) from error
        self.cluster = RecordedCluster(policy, line.balancer, line.engines, line.max_num_seqs)

    def program(self, at: int, line: ProgramLine) -> None:
        """Takes a root program or a sub-agent."""
        if PROGRAM_ID.fullmatch(line.program) is None:
            raise TraceError(at, f"program: 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {line.program!r}")
        if line.program in self.known:
            raise TraceError(at, f"program {line.program!r} already exists")
        if len(line.name.encode()) > MAX_NAME_BYTES:
            raise TraceError(at, f"name: at most {MAX_NAME_BYTES} bytes")
        _check_seconds(at, "arrival_s", line.arrival_s)
        if not line.parent:
            try:
                service_class = read_service_class(line.service_class) or ServiceClass.STANDARD
            except ValueError as error:
                raise TraceError(at, f"service_class: {error}") from error
            tree = _Tree(
                program_id=ProgramId(line.program),
                name=line.name,
                arrival_s=line.arrival_s,
                line=at,
                service_class=service_class,
            )
            self.trees.append(tree)
            self.known[line.program] = (tree, 0.0)
            return
        above = self.known.get(line.parent)
        if above is None:
            raise TraceError(at, f"parent: no program {line.parent!r} before this line")
        tree = above[0]
        if line.arrival_s < tree.arrival_s:
            raise TraceError(at, f"arrival_s: {line.arrival_s} is before its root's, {tree.arrival_s}")
        self.known[line.program] = (tree, line.arrival_s - tree.arrival_s)

    def call(self, at: int, line: CallLine) -> None:
        """Takes a call of a known program."""
        known = self.known.get(line.program)
        if known is None:
            raise TraceError(at, f"program: no program {line.program!r} before this line")
        tree, late_s = known
        if line.call in tree.index:
            raise TraceError(at, f"call {line.call!r} of {tree.program_id!r} already exists")
        _check_values(at, line)
        parents = tuple(_index_of(at, tree, "after", name) for name in line.after)
        extends = _index_of(at, tree, "extends", line.extends) if line.extends else -1
        if extends >= 0:
            base = tree.calls[extends]
            if line.shared_tokens > base.prompt_tokens + base.output_tokens:
                raise TraceError(
                    at, f"shared_tokens: {line.extends!r} has only {base.prompt_tokens + base.output_tokens} tokens"
                )
        tree.index[line.call] = len(tree.calls)
        tree.calls.append(
            Call(
                prompt_tokens=line.prompt_tokens,
                output_tokens=line.output_tokens,
                parents=parents,
                gap_s=line.gap_s if parents else line.gap_s + late_s,
                extends=extends,
                shared_tokens=line.shared_tokens,
                thread=line.thread or ("" if line.program == tree.program_id else line.program),
            )
        )


def _check_values(at: int, line: CallLine) -> None:
    _check_seconds(at, "gap_s", line.gap_s)
    if len(line.thread.encode()) > MAX_THREAD_BYTES:
        raise TraceError(at, f"thread: at most {MAX_THREAD_BYTES} bytes")
    for name, least in (("prompt_tokens", 1), ("output_tokens", 1), ("shared_tokens", 0)):
        if not least <= getattr(line, name) <= MAX_TOKENS:
            raise TraceError(at, f"{name}: must be {least} to {MAX_TOKENS}, got {getattr(line, name)}")
    if line.shared_tokens >= line.prompt_tokens:
        raise TraceError(at, f"shared_tokens: must be less than prompt_tokens, {line.prompt_tokens}")


def _index_of(at: int, tree: _Tree, field_name: str, call: str) -> int:
    index = tree.index.get(call)
    if index is None:
        raise TraceError(at, f"{field_name}: no call {call!r} of {tree.program_id!r} before this line")
    return index


def _check_seconds(at: int, name: str, value: float) -> None:
    if not 0 <= value <= MAX_SECONDS:
        raise TraceError(at, f"{name}: must be 0 to {MAX_SECONDS:.0f} seconds, got {value}")


def encoded(lines: Iterable[RecordingLine | ProgramLine | CallLine]) -> bytes:
    """The bytes of lines in a file."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def read_trace(lines: Iterable[bytes]) -> tuple[RecordedCluster | None, list[Program]]:
    """The recorded cluster, if the file is a recording, and its programs by arrival; times begin with the first one.

    TraceError names the offending line and what is wrong with it.
    """
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
    first_s = min(tree.arrival_s for tree in reader.trees)
    trees = sorted(reader.trees, key=lambda tree: tree.arrival_s)
    programs = [Program(t.program_id, t.name, t.arrival_s - first_s, tuple(t.calls), t.service_class) for t in trees]
    return reader.cluster, programs
