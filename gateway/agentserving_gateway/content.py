"""Which calls without an id are of one run: a call whose messages extend those of an earlier one. Pure.

Coding agents and most frameworks send the whole conversation with every call, and no id. A call is of a known run when
an earlier call's messages are a prefix of its own and the next message is the assistant's: that one the engine has
generated, since it was no part of the earlier prompt. Equal beginnings alone prove nothing. System prompts, first
questions and the assistant turns of examples in a prompt (aider sends some) are common to many runs.

What is remembered of a call is one digest of its messages, keyed by a secret of this process; no text is kept. It
stands for as many *heads* as calls ended there: the program of a run, or "" for the first call of one. A first call is
a program of its own, because most calls without an id are never continued. The second call opens the run's program and
uses one head up, so that two runs which began alike stay two.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import msgspec
from agentserving.contract.ids import ProgramId, Tenant

from agentserving_gateway.body import Body
from agentserving_gateway.program_names import from_instructions

# A call with more messages is not grouped: half a microsecond each on the picker's only thread.
MAX_MESSAGES = 10_000
# Assistant turns of one call that are looked up, the newest ones. A client that edits older ones is found by them.
MAX_TURNS = 256
# Calls remembered, and those of one tenant: some 250 bytes each. A run needs its last few.
MAX_CALLS, MAX_CALLS_OF_TENANT = 65_536, 16_384
# Runs that are equal so far. Beyond it the oldest is forgotten and continues as a new program.
MAX_HEADS = 256
# Bytes digested in one step of a reading, half a millisecond of work.
STEP_BYTES = 1 << 18
# An answer of this many bytes is hardly given twice. "Hello! How can I help you today?" is.
LONG_TURN_BYTES = 256

_NOTHING = (b"", b"null", b'""')
_INSTRUCTING = ("system", "developer")
_GENERATED_TYPES = re.compile(r"reasoning|.*_call")
_IDS = re.compile(rb'"(?:id|call_id)"\s*:\s*"([^"\\]{9,128})"')
# A random part of an id, with letters and digits: not `functions.search:0`, which counts.
_RANDOM = re.compile(rb"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{9,}")


class Telling(IntEnum):
    """How sure it is that equal turns, after equal messages, were generated only once."""

    NO = 0
    # Two runs at temperature 0 may get the same text.
    LONG = 1
    # It has a random id of a tool call.
    UNIQUE = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn within a call: digests of the messages before it, and through it."""

    before: bytes
    through: bytes
    telling: Telling


@dataclass(frozen=True, slots=True)
class Conversation:
    """Digests of a call's messages: all of them, and at its assistant turns, the newest first.

    `name`: a program's, from how its instructions begin; empty without instructions.
    """

    whole: bytes
    turns: tuple[Turn, ...]
    name: str = ""


class _Item(msgspec.Struct):
    """A message, or an item of a Responses input."""

    role: Any = None
    type: Any = None


_TEXTS = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM = msgspec.json.Decoder(_Item)


# Pauses in which others may be served, and its result at the end.
Reading = Generator[None, None, "Conversation | None"]


def reading(body: Body, secret: bytes) -> Reading:
    """None for a body without a list of messages, or one that is not readable, too long, or only a continuation.

    Pauses between messages and within long ones. What cannot be interrupted is one pass over the body.
    """
    raw = body.messages or body.input
    if not raw or body.previous_response_id is not None:
        return None
    yield
    try:
        messages = _TEXTS.decode(raw)
        if not messages or len(messages) > MAX_MESSAGES:
            return None
        yield
        texts, is_marked = list[bytes](), False
        for message in (body.system, body.instructions, *messages):
            texts.append(bytes(message))
            is_marked = is_marked or b'"cache_control"' in texts[-1]
            yield
        # All of them, for a text that is written anew differs from the client's in its spaces.
        for index, text in enumerate(texts):
            if is_marked and text:
                texts[index] = _unmarked(text)
                yield
        state = hashlib.sha256(secret)
        for text in texts[:2]:
            yield from _digested(state, text)
        found = yield from _walk(state, texts[2:])
        return replace(found, name=from_instructions(_instructions(texts)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _digested(state: Any, text: bytes) -> Generator[None, None, None]:
    """Adds a text and a zero byte, which separates texts because JSON has none."""
    view = memoryview(text)
    for begin in range(0, len(text), STEP_BYTES):
        state.update(view[begin : begin + STEP_BYTES])
        yield
    state.update(b"\0")


def _instructions(texts: list[bytes]) -> bytes:
    """Of the fields `system` and `instructions`, or else of a first message for the system."""
    *fields, first = texts[:3]
    given = next((field for field in fields if field not in _NOTHING), b"")
    return given or (first if _ITEM.decode(first).role in _INSTRUCTING else b"")


def _walk(state: Any, texts: list[bytes]) -> Generator[None, None, Conversation]:
    turns: list[Turn] = []
    before, size, is_unique = b"", 0, False

    def end_turn() -> None:
        telling = Telling.UNIQUE if is_unique else Telling.LONG if size >= LONG_TURN_BYTES else Telling.NO
        turns.append(Turn(before, state.digest(), telling))

    for text in texts:
        if _is_generated(_ITEM.decode(text)):
            if not before:
                before, size, is_unique = state.digest(), 0, False
            size += len(text)
            is_unique = is_unique or any(_RANDOM.search(found) for found in _IDS.findall(text))
        elif before:
            end_turn()
            before = b""
        yield from _digested(state, text)
    if before:
        end_turn()
    return Conversation(state.digest(), tuple(turns[: -MAX_TURNS - 1 : -1]))


def _is_generated(item: _Item) -> bool:
    """An assistant's message, or a call of a tool or reasoning in a Responses input."""
    if item.role == "assistant":
        return True
    return isinstance(item.type, str) and _GENERATED_TYPES.fullmatch(item.type) is not None


def _unmarked(text: bytes) -> bytes:
    """What stays equal while a message grows older: clients move their cache_control marks to newer ones."""
    return msgspec.json.encode(_without_marks(msgspec.json.decode(text)))


def _without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_marks(inner) for key, inner in value.items() if key != "cache_control"}
    return [_without_marks(inner) for inner in value] if isinstance(value, list) else value


def _new_id() -> str:
    return f"c-{secrets.token_hex(16)}"


_Heads = list[str]


def _newest(known: OrderedDict[bytes, _Heads], digest: bytes) -> str:
    heads = known.get(digest)
    return heads[-1] if heads else ""


class Runs:
    """What one gateway remembers of calls without an id, by tenant; bounded, the least recently used goes first."""

    def __init__(self, new_id: Callable[[], str] = _new_id) -> None:
        self._secret = secrets.token_bytes(32)
        self._new_id = new_id
        self._tenants: OrderedDict[Tenant, OrderedDict[bytes, _Heads]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def reading(self, body: Body) -> Reading:
        """What `join` needs of a call without an id; see `reading` above."""
        return reading(body, self._secret)

    def join(self, tenant: Tenant, conversation: Conversation) -> ProgramId:
        """The program of a call's run; empty for one that extends no known call. The call is remembered."""
        known = self._tenants.setdefault(tenant, OrderedDict())
        self._tenants.move_to_end(tenant)
        program = self._extended(known, conversation)
        if not program:
            # The same call again (a retry) of a run whose earlier calls are forgotten or used up.
            program = _newest(known, conversation.whole)
        heads = self._entry(known, conversation.whole)
        if not program or program not in heads:
            heads.append(program)
            del heads[:-MAX_HEADS]
        self._forget(known)
        return ProgramId(program)

    def _extended(self, known: OrderedDict[bytes, _Heads], conversation: Conversation) -> str:
        """The program of the newest known call that this one extends."""
        for turn in conversation.turns:
            same_turn = _newest(known, turn.through) if turn.telling else ""
            if same_turn and turn.telling is Telling.UNIQUE:
                return same_turn
            heads = known.get(turn.before)
            if heads:
                known.move_to_end(turn.before)
                return self._taken(known, turn, heads)
            if same_turn:
                return same_turn
        return ""

    def _taken(self, known: OrderedDict[bytes, _Heads], turn: Turn, heads: _Heads) -> str:
        program = heads[0]
        # A run that is the only one here may branch: Qwen Code asks aside whether it should go on.
        if len(heads) > 1 or not program:
            del heads[0]
        if not program:
            program = self._new_id()
            if turn.telling:
                self._entry(known, turn.through)[:] = [program]
        return program

    def _entry(self, known: OrderedDict[bytes, _Heads], digest: bytes) -> _Heads:
        if digest not in known:
            self._size += 1
        heads = known.setdefault(digest, [])
        known.move_to_end(digest)
        return heads

    def _forget(self, known: OrderedDict[bytes, _Heads]) -> None:
        while len(known) > MAX_CALLS_OF_TENANT:
            known.popitem(last=False)
            self._size -= 1
        for tenant, calls in self._least_recent():
            calls.popitem(last=False)
            self._size -= 1
            if not calls:
                del self._tenants[tenant]

    def _least_recent(self) -> Iterator[tuple[Tenant, OrderedDict[bytes, _Heads]]]:
        """The tenant that has called least recently, as long as there are too many calls of all."""
        while self._size > MAX_CALLS:
            yield next(iter(self._tenants.items()))
