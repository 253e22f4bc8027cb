"""Reads WEKA's coding-agent sessions (callanjfox/kv-cache-tester, docs/trace_replay_tester.md; cc-traces-weka-*).

A folder has one JSON object a session, in a .json file each or as lines of .jsonl files. A session has requests with
`t` (seconds since its start), `in` and `out` tokens, `hash_ids` of blocks of `block_size` tokens, and `api_time`, the
seconds until the response was complete. A request of type `subagent` has requests of its own, whose `t` count from its
start. Blocks are compared within a session: our format has no contexts that programs of different sessions share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from agentserving.contract.ids import CallId, EngineId, ProgramId
from agentserving_controlplane.table.programs import PROGRAM_ID

from agentserving_replay.importing.errors import ImportFailedError, checked_seconds, checked_tokens
from agentserving_replay.importing.hashes import Blocks, check_length, shared_tokens
from agentserving_replay.traces.file import MAX_TOKENS, CallLine, ProgramLine
from agentserving_replay.traces.lineage import RecordedCall
from agentserving_replay.traces.recording import Member, Tree, call_lines, in_order, program_lines

# The class of all sessions: they are runs of one kind of agent.
CLASS = "coding-agent"
MAX_DEPTH = 8


class _Request(msgspec.Struct, kw_only=True):
    """A request, or a sub-agent with requests of its own; unknown fields are ignored."""

    t: float
    type: str = ""
    tokens_in: int = msgspec.field(default=0, name="in")
    tokens_out: int = msgspec.field(default=0, name="out")
    hash_ids: list[int] = []
    api_time: float | None = None
    agent_id: str = ""
    subagent_type: str = ""
    requests: list[_Request] = []


class _Session(msgspec.Struct, kw_only=True):
    id: str
    block_size: int
    requests: list[_Request]


_decoder = msgspec.json.Decoder(_Session)


def sessions(folder: Path) -> Iterator[tuple[str, _Session]]:
    """(place, session) of every file, one at a time. ImportFailedError."""
    files = sorted(path for path in folder.iterdir() if path.suffix in {".json", ".jsonl"})
    if not files:
        raise ImportFailedError(str(folder), "no .json or .jsonl file in it")
    for path in files:
        if path.suffix == ".json":
            yield path.name, _decoded(path.name, path.read_bytes())
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path.name}, line {number}", _decoded(f"{path.name}, line {number}", line)


def _decoded(where: str, data: bytes) -> _Session:
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ImportFailedError(where, str(error)) from error


def read(
    folder: Path, start_every_s: float, tokens_per_s: float | None = None, max_context: int = MAX_TOKENS
) -> Iterator[list[ProgramLine | CallLine]]:
    """The lines of each session. ImportFailedError.

    Sessions have no common clock: one begins every `start_every_s` seconds. A request without `api_time`, which some of
    the published ones lack, is assumed to have decoded at `tokens_per_s`, and refused if that is None. Sessions with a
    context of more than `max_context` tokens are left out.
    """
    seen: set[str] = set()
    taken = 0
    for where, session in sessions(folder):
        if PROGRAM_ID.fullmatch(session.id) is None or session.id in seen:
            raise ImportFailedError(where, f"id: unique, 1 to 128 of A-Z a-z 0-9 . _ : @ / -, got {session.id!r}")
        if not 1 <= session.block_size <= 1 << 20:
            raise ImportFailedError(where, f"block_size: must be 1 to {1 << 20}, got {session.block_size}")
        seen.add(session.id)
        reader = _Reader(where, session, tokens_per_s)
        if all(call.context_tokens <= max_context for call in reader.tree.calls):
            yield _lines(reader, round(taken * start_every_s * 1e6))
            taken += 1


class _Reader:
    """A session as a tree of recorded calls, and the hashes of each call with its place in the file."""

    def __init__(self, where: str, session: _Session, tokens_per_s: float | None) -> None:
        root = ProgramId(session.id)
        self._tokens_per_s = tokens_per_s
        self.block_size = session.block_size
        self.tree = Tree(root=root, open_us=0)
        self.tree.members[root] = Member(program_id=root, name=CLASS, parent=ProgramId(""), open_us=0)
        self.hashes: dict[CallId, tuple[str, list[int]]] = {}
        self._walk(where, session.requests, root, 0.0, 0)
        if not self.tree.calls:
            raise ImportFailedError(where, "requests: no request in it")

    def _walk(self, where: str, requests: list[_Request], program: ProgramId, begin_s: float, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ImportFailedError(where, f"requests: sub-agents nest more than {MAX_DEPTH} deep")
        for index, request in enumerate(requests):
            place = f"{where}, requests[{index}]"
            start_s = begin_s + checked_seconds(place, "t", request.t)
            if request.type == "subagent":
                self._subagent(place, request, program, start_s, depth)
            else:
                self._call(place, request, program, start_s)

    def _subagent(self, where: str, request: _Request, above: ProgramId, start_s: float, depth: int) -> None:
        number = len(self.tree.members)
        program = ProgramId(f"{self.tree.root[:110]}.{number}")
        name = request.subagent_type[:64]
        self.tree.members[program] = Member(program_id=program, name=name, parent=above, open_us=round(start_s * 1e6))
        self._walk(where, request.requests, program, start_s, depth + 1)

    def _call(self, where: str, request: _Request, program: ProgramId, start_s: float) -> None:
        api_time = request.api_time
        if api_time is None:
            if self._tokens_per_s is None:
                raise ImportFailedError(
                    where,
                    "api_time: missing, so it is unknown when the call ended: --tokens-per-s assumes a decoding speed",
                )
            api_time = request.tokens_out / self._tokens_per_s
        took_s = checked_seconds(where, "api_time", api_time)
        prompt = checked_tokens(where, "in", request.tokens_in, 1)
        check_length(where, request.hash_ids, prompt, self.block_size)
        call_id = CallId(str(len(self.tree.calls)))
        self.hashes[call_id] = (where, request.hash_ids)
        self.tree.calls.append(recorded(
            call_id, program, start_s, start_s + took_s, prompt, checked_tokens(where, "out", request.tokens_out, 0)
        ))  # fmt: skip


def recorded(
    call_id: CallId, program: ProgramId, start_s: float, end_s: float, prompt: int, output: int, cached: int = 0
) -> RecordedCall:
    """A call of an imported trace. One without output has been aborted: it computed its prompt, and one token."""
    begin_us = round(start_s * 1e6)
    return RecordedCall(
        call_id=call_id,
        program_id=program,
        thread_id="",
        engine_id=EngineId("imported"),
        parents=(),
        admit_us=begin_us,
        end_us=max(begin_us + 1, round(end_s * 1e6)),
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=max(1, output),
    )


def _lines(reader: _Reader, begin_us: int) -> list[ProgramLine | CallLine]:
    tree, blocks = reader.tree, Blocks(reader.block_size)
    calls = in_order(tree.calls)
    known = []
    for at, call in enumerate(calls):
        where, hashes = reader.hashes[call.call_id]
        base, count = blocks.add(where, at, hashes)
        earlier = calls[base].prompt_tokens if base >= 0 else 0
        known.append((base, shared_tokens(count, reader.block_size, call.prompt_tokens, earlier)))
    names: dict[ProgramId, str] = {program: program for program in tree.members}
    return [*program_lines(tree, names, -begin_us), *call_lines(tree, names, known)]
