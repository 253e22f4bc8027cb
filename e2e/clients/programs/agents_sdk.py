"""OpenAI's Agents SDK, on /v1/responses."""

from collections.abc import Callable

from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from shared import MODEL, main


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """The run's final output."""
    # The SDK's own client belongs to one event loop, and the helper has another.
    model = OpenAIResponsesModel(MODEL, AsyncOpenAI())
    agent = Agent(name="assistant", instructions="Be brief.", model=model, tools=[function_tool(tool)])
    return str(Runner.run_sync(agent, prompt).final_output)


set_tracing_disabled(True)
main(answer)
