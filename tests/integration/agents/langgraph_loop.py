"""An agent of LangGraph. Prints the tools that it ran, and its answer."""

import os
import warnings

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

with warnings.catch_warnings():
    # It has moved to a package that is not installed here.
    warnings.simplefilter("ignore")
    from langgraph.prebuilt import create_react_agent

ran = []


@tool
def search(query: str, limit: int) -> str:
    """Searches."""
    ran.append((query, limit))
    return "found"


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    agent = create_react_agent(ChatOpenAI(model=os.environ["OPENAI_MODEL"]), [search])
result = agent.invoke({"messages": [("user", "find it")]})
print(len(ran), result["messages"][-1].content)
