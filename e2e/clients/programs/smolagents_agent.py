"""smolagents: its agent of tool calls."""

from collections.abc import Callable

from shared import BASE_URL, KEY, MODEL, main
from smolagents import OpenAIServerModel, ToolCallingAgent
from smolagents import tool as as_tool


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """The final answer."""
    model = OpenAIServerModel(MODEL, api_base=BASE_URL, api_key=KEY)
    return str(ToolCallingAgent(tools=[as_tool(tool)], model=model, max_steps=6).run(prompt))


main(answer)
