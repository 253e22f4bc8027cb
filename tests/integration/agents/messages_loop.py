"""An agent of Anthropic's SDK, its own tool loop. Prints the tools that it ran, and its answer."""

import os

import anthropic
from anthropic import beta_tool

ran = []


@beta_tool
def search(query: str, limit: int) -> str:
    """Searches.

    Args:
        query: What for.
        limit: How many results.
    """
    ran.append((query, limit))
    return "found"


with anthropic.Anthropic() as sdk:
    runner = sdk.beta.messages.tool_runner(
        model=os.environ["ANTHROPIC_MODEL"], max_tokens=1000, tools=[search],
        messages=[{"role": "user", "content": "find it"}],
    )  # fmt: skip
    answer = runner.until_done()
print(len(ran), "".join(block.text for block in answer.content if block.type == "text"))
