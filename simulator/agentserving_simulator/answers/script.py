"""Scripts: what the engine answers, turn by turn, for tests that need certain calls. Pure.

    [{"when": "fix the test", "turns": [
        {"calls": [{"name": "Bash", "arguments": {"command": "pytest"}}, {"name": "Read"}]},
        {"reasoning": "It failed.", "calls": [{"name": "Edit"}]},
        {"text": "Fixed."}]}]

The first script counts whose `when` the user has said; its turn is the number of answers since then. So agents that
write their calls as text, or get results as messages of the user, can be scripted as well. Calls of tools that are not
offered are left out; arguments that are left out are made. After the last turn, and where a turn has nothing to say,
the engine does what it does without a script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentserving_simulator.answers.asked import Asked
from agentserving_simulator.answers.conversation import answers_since


class ScriptedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call; without `arguments` those that fit the tool's schema are made."""

    name: str
    arguments: dict[str, Any] | None = None


class ScriptedTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ScriptedCall, ...] = ()


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answers to one request of a user; `when` = "" for a conversation's first."""

    turns: tuple[ScriptedTurn, ...]
    when: str = ""


class InvalidScriptError(ValueError):
    """The message names the place in the file."""


def read_scripts(text: bytes) -> tuple[Script, ...]:
    """One script or a list of them, as JSON. Raises InvalidScriptError."""
    try:
        found = msgspec.json.decode(text, type=list[Script] | Script)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidScriptError(f"no script: {error}") from error
    return (found,) if isinstance(found, Script) else tuple(found)


def turn_of(scripts: Sequence[Script], asked: Asked) -> ScriptedTurn | None:
    """What a script says for this request; None = nothing."""
    places = ((script, answers_since(asked.conversation, script.when)) for script in scripts)
    script, place = next(((each, at) for each, at in places if at is not None), (None, 0))
    if script is None or place >= len(script.turns):
        return None
    turn = script.turns[place]
    offered = {tool.name for tool in asked.tools.offered}
    says = turn.text or any(call.name in offered for call in turn.calls)
    return turn if says else None
