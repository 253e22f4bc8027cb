"""An agent of OpenAI's Agents SDK, with a tool and a hand-off. Prints the tools that it ran, and its answer."""

import os

from agents import Agent, Runner, function_tool, set_tracing_disabled

ran = []


@function_tool
def search(query: str, limit: int) -> str:
    """Searches."""
    ran.append((query, limit))
    return "found"


set_tracing_disabled(True)
model = os.environ["OPENAI_MODEL"]
writer = Agent(name="writer", instructions="Write.", model=model, tools=[search])
researcher = Agent(name="researcher", instructions="Search.", model=model, tools=[search], handoffs=[writer])
result = Runner.run_sync(researcher, "find it")
print(len(ran), result.final_output)
