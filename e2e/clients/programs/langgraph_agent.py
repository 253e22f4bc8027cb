"""LangGraph, by LangChain's create_agent."""

from collections.abc import Callable

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from shared import MODEL, main


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """The agent's last message."""
    agent = create_agent(ChatOpenAI(model=MODEL), tools=[tool], system_prompt="Be brief.")
    return str(agent.invoke({"messages": [("user", prompt)]})["messages"][-1].content)


main(answer)
