"""OpenAI's Agents SDK, on /v1/responses."""

from collections.abc import Callable

from agents import Agent, Runner, function_tool, set_tracing_disabled
from shared import MODEL, main


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """The run's final output."""
    agent = Agent(name="assistant", instructions="Be brief.", model=MODEL, tools=[function_tool(tool)])
    return str(Runner.run_sync(agent, prompt).final_output)


set_tracing_disabled(True)
main(answer)
