"""What the engine does when it is asked: calls a tool, answers in text, follows a script. Pure.

The request alone decides, as with a model: how many turns with tool calls its conversation ends with says where the
agent is, so any engine of a cluster goes on with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentserving_simulator.answers.asked import Asked, BadRequestError, Tool
from agentserving_simulator.answers.conversation import spelled
from agentserving_simulator.answers.plan import Part, PartKind, Plan, of_parts, of_words
from agentserving_simulator.answers.schema_values import NoValueError, value
from agentserving_simulator.answers.script import Script, ScriptedTurn, turn_of
from agentserving_simulator.tokens import word

if TYPE_CHECKING:
    from random import Random

ANSWER = "Done. This is a simulated engine: its tool calls fit their schemas, and its answers are placeholders."
GREETING = "hello from agentserving"
# Tools that end an agent: they are called when the budget of turns is spent and a call is required.
_LAST = ("final", "attempt_completion", "finish", "submit")
_COMMANDS = ("command", "cmd", "commands")
# What a schema of a text has that not every text fits.
_NARROW = {"enum", "const", "pattern", "format", "maxLength", "$ref"}
# Seed -> a source of randomness.
Rng = Callable[[int], "Random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """`turns`: how often an agent that offers tools gets a call of one before it gets its answer."""

    turns: int = 1
    # Calls in a turn, where the request allows several.
    parallel_calls: int = 1
    # Placeholder words after which an answer ends, unless the request ignores the end or sets a lower limit.
    answer_tokens: int = 256
    # Of requests that ask for reasoning.
    reasoning_tokens: int = 16
    answer: str = ANSWER
    scripts: tuple[Script, ...] = ()


def plan_of(asked: Asked, behaviour: Behaviour, rng: Rng, seed: int, most: int) -> Plan:
    """The answer to a request; `seed` of its placeholder words, `most` tokens fit. Raises BadRequestError."""
    scripted = turn_of(behaviour.scripts, asked)
    calls = _scripted_calls(scripted, asked, behaviour.answer, rng) if scripted else _calls(asked, behaviour, rng)
    parts = [Part(PartKind.REASONING, text) for text in (_reasoning(scripted, asked, behaviour, seed),) if text]
    text = scripted.text if scripted else ""
    if not calls and not text:
        if asked.schema is not None:
            text = _structured(asked.schema, rng)
        elif asked.has_tools and not asked.ignore_eos:
            text = behaviour.answer
        elif not parts:
            ends_after = None if asked.ignore_eos else behaviour.answer_tokens
            return of_words(ends_after, asked.stop, seed, most)
        else:
            text = _words(seed, most if asked.ignore_eos else behaviour.answer_tokens)
    parts += [Part(PartKind.TEXT, text)] if text else []
    return of_parts([*parts, *calls], asked.stop)


def _words(seed: int, count: int) -> str:
    return "".join(word(seed, index) for index in range(count))


def _reasoning(scripted: ScriptedTurn | None, asked: Asked, behaviour: Behaviour, seed: int) -> str:
    if scripted and scripted.reasoning:
        return scripted.reasoning
    # Other words than those of the answer.
    return _words(seed >> 3, behaviour.reasoning_tokens) if asked.reasoning else ""


def _structured(schema: object, rng: Rng) -> str:
    try:
        return spelled(value(schema, rng(_digest("answer", 0))))
    except NoValueError as error:
        raise BadRequestError(f"the simulator finds no value for this schema: {error}", "response_format") from error


def _scripted_calls(scripted: ScriptedTurn, asked: Asked, answer: str, rng: Rng) -> list[Part]:
    offered = {tool.name: tool for tool in asked.tools.offered}
    calls = []
    for number, call in enumerate(scripted.calls):
        if call.name in offered:
            given = call.arguments
            arguments = _arguments(offered[call.name], asked.turn, number, answer, rng) if given is None else given
            calls.append(_call(offered[call.name], arguments))
    return calls


def _calls(asked: Asked, behaviour: Behaviour, rng: Rng) -> list[Part]:
    tools = asked.tools
    within_budget = asked.turn < behaviour.turns
    if not tools.offered or not (within_budget or tools.must_call):
        return []
    wanted = behaviour.parallel_calls if tools.parallel and within_budget else 1
    order = _preferred(tools.offered, asked.turn * wanted, ends=not within_budget)
    calls: list[Part] = []
    refused: list[str] = []
    # Once round the tools, and round again while there are fewer of them than calls.
    for number in range(max(len(order), wanted) * 2):
        tool = order[number % len(order)]
        if len(calls) == wanted:
            break
        try:
            calls.append(_call(tool, _arguments(tool, asked.turn, len(calls), behaviour.answer, rng)))
        except NoValueError as error:
            refused.append(f"{tool.name}: {error}")
    if not calls and tools.must_call:
        raise BadRequestError(f"the simulator finds no arguments for {'; '.join(dict.fromkeys(refused))}", "tools")
    return calls


def _preferred(offered: Sequence[Tool], start: int, *, ends: bool) -> Sequence[Tool]:
    """Shells alone where there is one: of all tools of an agent a command is the one whose effect is known to be
    harmless. Else each in turn; those that end the agent when the budget is spent."""
    last = [tool for tool in offered if _ends_agent(tool)]
    if ends:
        return [*last, *reversed(offered)]
    others = [tool for tool in offered if tool not in last] or last
    shells = [tool for tool in others if any(_command(*each) is not None for each in _properties(tool))]
    chosen = shells[:1] or others
    start %= len(chosen)
    return [*chosen[start:], *chosen[:start]]


def _properties(tool: Tool) -> list[tuple[str, Mapping[str, Any]]]:
    found = tool.schema.get("properties")
    return [(name, each) for name, each in found.items() if isinstance(each, dict)] if isinstance(found, dict) else []


def _ends_agent(tool: Tool) -> bool:
    return tool.name.lower().startswith(_LAST)


def _arguments(tool: Tool, turn: int, number: int, answer: str, rng: Rng) -> dict[str, Any]:
    """Raises NoValueError. `answer`: the text of a tool that ends the agent."""
    found = value({"type": "object", **tool.schema}, rng(_digest(tool.name, turn * 64 + number)), _command)
    if not isinstance(found, dict):
        raise NoValueError("its schema is not of an object")
    # A command that is not required is what makes the call a harmless one.
    for name, schema in _properties(tool):
        hinted = _command(name, schema)
        if hinted is not None:
            found.setdefault(name, hinted)
        if _ends_agent(tool) and name in found and schema.get("type") == "string" and not schema.keys() & _NARROW:
            found[name] = answer
    return found


def _command(name: str, schema: Mapping[str, Any]) -> object:
    """A greeting for properties that take a command of a shell."""
    if name not in _COMMANDS or schema.keys() & _NARROW:
        return None
    if schema.get("type") == "string":
        return f"echo {GREETING}"
    items = schema.get("items")
    if schema.get("type") == "array" and isinstance(items, dict) and items.get("type") == "string":
        return [f"echo {GREETING}"] if name == "commands" else ["echo", GREETING]
    return None


def _call(tool: Tool, arguments: object) -> Part:
    return Part(PartKind.CALL, spelled(arguments), tool.name, tool.namespace)


def _digest(name: str, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{number} {name}".encode(), digest_size=8).digest(), "big")
