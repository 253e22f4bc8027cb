"""CrewAI: a crew of one agent."""

from collections.abc import Callable

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool as as_tool
from shared import BASE_URL, KEY, MODEL, main


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """The crew's output."""
    llm = LLM(model=f"openai/{MODEL}", base_url=BASE_URL, api_key=KEY)
    agent = Agent(role="assistant", goal="Answer.", backstory="Brief.", llm=llm, tools=[as_tool("get_weather")(tool)])
    task = Task(description=prompt, expected_output="An answer.", agent=agent)
    return str(Crew(agents=[agent], tasks=[task]).kickoff())


main(answer)
