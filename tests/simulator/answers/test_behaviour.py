"""Which tools the engine calls and when it answers: a budget of turns, scripts, choices of a request."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from agentserving_simulator.answers.asked import Asked, BadRequestError, Tool, Tools
from agentserving_simulator.answers.behaviour import ANSWER, GREETING, Behaviour, plan_of
from agentserving_simulator.answers.conversation import ToolCall, Turn
from agentserving_simulator.answers.plan import PartKind, Plan
from agentserving_simulator.answers.script import InvalidScriptError, read_scripts

STRING = {"type": "string"}


def tool(name: str, **properties: Any) -> Tool:
    return Tool(name, {"type": "object", "properties": properties, "required": sorted(properties)})


BASH = tool("Bash", command=STRING, description=STRING)
READ, EDIT = tool("Read", path=STRING), tool("Edit", path=STRING)
FINAL = tool("final_result", answer=STRING)
IMPOSSIBLE = tool("impossible", number={"type": "integer", "minimum": 2, "maximum": 1})


def plan(
    *tools: Tool, behaviour: Behaviour | None = None, must: bool = False, turn: int = 0, request: str = "x", **more: Any
) -> Plan:
    offered = Tools(offered=tools, must_call=must)
    series = (Turn("assistant", "", (ToolCall("any", "{}"),)), Turn("tool", "done"), Turn("user", "be brief"))
    asked = Asked(
        prompts=[["x"]], max_tokens=None, tools=offered, has_tools=bool(tools),
        conversation=(Turn("user", request), *(series * turn)), **more,
    )  # fmt: skip
    return plan_of(asked, behaviour or Behaviour(), random.Random, seed=7, most=1000)


def calls(found: Plan) -> list[str]:
    return [part.name for part in found.parts if part.kind is PartKind.CALL]


def text(found: Plan) -> str:
    return "".join(part.text for part in found.parts if part.kind is PartKind.TEXT)


def test_a_budget_of_turns_is_spent_on_calls_and_then_the_agent_gets_its_answer() -> None:
    behaviour = Behaviour(turns=3)
    assert [calls(plan(READ, EDIT, behaviour=behaviour, turn=turn)) for turn in range(5)] == [
        ["Read"], ["Edit"], ["Read"], [], [],
    ]  # fmt: skip
    assert text(plan(READ, EDIT, behaviour=behaviour, turn=3)) == ANSWER


def test_a_shell_is_called_with_a_harmless_command_before_any_other_tool() -> None:
    found = plan(READ, BASH, EDIT, FINAL)
    assert calls(found) == ["Bash"]
    assert json.loads(found.parts[0].text)["command"] == f"echo {GREETING}"
    argv = plan(tool("shell", command={"type": "array", "items": STRING}))
    assert json.loads(argv.parts[0].text)["command"] == ["echo", GREETING]
    # A command that is not a shell's.
    editor = plan(tool("editor", command={"type": "string", "enum": ["view"]}))
    assert json.loads(editor.parts[0].text) == {"command": "view"}


def test_a_call_that_is_required_after_the_budget_is_that_of_the_tool_that_ends_the_agent() -> None:
    assert calls(plan(READ, FINAL, EDIT, turn=1, must=True)) == ["final_result"]
    assert calls(plan(READ, EDIT, turn=1, must=True)) == ["Edit"]
    assert calls(plan(FINAL, READ, turn=0)) == ["Read"]
    assert calls(plan(FINAL, turn=0)) == ["final_result"]


def test_the_text_of_a_tool_that_ends_the_agent_is_the_answer_where_any_text_fits() -> None:
    def arguments(found: Plan) -> Any:
        return json.loads(found.parts[0].text)

    assert arguments(plan(FINAL, turn=1, must=True)) == {"answer": ANSWER}
    narrow = tool("final_answer", answer={"type": "string", "enum": ["yes", "no"]}, score={"type": "integer"})
    found = arguments(plan(narrow, turn=1, must=True))
    assert found["answer"] in ("yes", "no")
    assert isinstance(found["score"], int)
    assert arguments(plan(READ))["path"] != ANSWER


def test_parallel_calls_are_made_where_they_are_allowed() -> None:
    behaviour = Behaviour(parallel_calls=3)
    assert calls(plan(READ, EDIT, behaviour=behaviour)) == ["Read", "Edit", "Read"]
    assert len(calls(plan(BASH, READ, behaviour=behaviour))) == 3
    alone = Asked(prompts=[["x"]], max_tokens=None, tools=Tools(offered=(READ, EDIT), parallel=False))
    assert calls(plan_of(alone, behaviour, random.Random, seed=7, most=1000)) == ["Read"]


def test_a_tool_without_possible_arguments_is_passed_over_or_told() -> None:
    assert calls(plan(IMPOSSIBLE, READ)) == ["Read"]
    assert text(plan(IMPOSSIBLE)) == ANSWER
    with pytest.raises(BadRequestError, match="no arguments for impossible: no number fits"):
        plan(IMPOSSIBLE, must=True)


def test_the_same_request_gets_the_same_calls() -> None:
    assert plan(BASH).parts == plan(BASH).parts


SCRIPT = b"""[
 {"when": "sub-agent", "turns": [{"calls": [{"name": "Read"}]}]},
 {"when": "fix", "turns": [
   {"calls": [{"name": "Bash", "arguments": {"command": "pytest"}}, {"name": "Nothing"}, {"name": "Read"}]},
   {"reasoning": "It failed.", "text": "I edit it.", "calls": [{"name": "Edit"}]},
   {"text": "Fixed."}]}]"""


def test_a_script_says_what_is_answered_turn_by_turn() -> None:
    behaviour = Behaviour(turns=0, scripts=read_scripts(SCRIPT))
    tools = (BASH, READ, EDIT)
    first = plan(*tools, behaviour=behaviour, request="fix the test")
    assert calls(first) == ["Bash", "Read"]
    assert json.loads(first.parts[0].text) == {"command": "pytest"}
    second = plan(*tools, behaviour=behaviour, request="fix the test", turn=1)
    assert [part.kind for part in second.parts] == [PartKind.REASONING, PartKind.TEXT, PartKind.CALL]
    assert text(plan(*tools, behaviour=behaviour, request="fix the test", turn=2)) == "Fixed."
    assert text(plan(*tools, behaviour=behaviour, request="fix the test", turn=3)) == ANSWER
    assert calls(plan(*tools, behaviour=behaviour, request="you are a sub-agent")) == ["Read"]
    assert text(plan(*tools, behaviour=behaviour, request="other")) == ANSWER
    # A title for the conversation, say: no tools are offered.
    assert plan(behaviour=behaviour, request="fix the test").ends_after == behaviour.answer_tokens


def test_the_script_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text()
    (text,) = re.findall(r"```json\n(.*?)```", page, re.S)
    counting, other = read_scripts(text.encode())
    assert (counting.when, [call.name for call in other.turns[0].calls]) == ("count the files", ["Read", "Grep"])


def test_agents_that_write_calls_as_text_follow_a_script_and_come_to_an_end() -> None:
    said = [Turn("assistant", "```run ls```"), Turn("user", "Observation: a b")]
    scripts = read_scripts(b'{"when": "count", "turns": [{"text": "```run ls```"}, {"text": "Two."}]}')

    def answered(turns: list[Turn], **more: Any) -> str:
        asked = Asked(prompts=[["x"]], max_tokens=None, conversation=(Turn("user", "count"), *turns), **more)
        return text(plan_of(asked, Behaviour(scripts=scripts), random.Random, seed=7, most=1000))

    assert answered([]) == "```run ls```"
    assert answered(said) == "Two."
    assert answered([*said, Turn("assistant", "Two."), Turn("user", "count")]) == "```run ls```"
    # Calls that come back as text, from an agent that requires one each time.
    tools = Tools(offered=(READ, FINAL), must_call=True)
    asked = Asked(prompts=[["x"]], max_tokens=None, tools=tools, conversation=(Turn("user", "x"), *said))
    assert calls(plan_of(asked, Behaviour(), random.Random, seed=7, most=1000)) == ["final_result"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b'{"turns": [{"cals": []}]}', r"unknown field `cals` - at `\$.turns\[0\]`"),
        (b'[{"turns": [{"calls": [{"arguments": {}}]}]}]', "missing required field `name`"),
        (b"{", "truncated"),
    ],
)
def test_a_script_with_an_error_is_refused_with_the_place(text: bytes, place: str) -> None:
    with pytest.raises(InvalidScriptError, match=place):
        read_scripts(text)


def test_answers_of_requests_without_tools_end_by_themselves_unless_the_end_is_ignored() -> None:
    assert plan().ends_after == 256
    assert plan(ignore_eos=True).ends_after is None
    assert plan(BASH, turn=9, ignore_eos=True).ends_after is None
