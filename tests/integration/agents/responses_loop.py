"""An agent of OpenAI's SDK on responses. Prints the tools that it ran, and its answer."""

import os
from typing import Any

import openai

TOOL: Any = {
    "type": "function",
    "name": "search",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    "strict": False,
}
items: list[Any] = [{"role": "user", "content": "find it"}]
ran = 0
with openai.OpenAI() as sdk:
    while True:
        answer = sdk.responses.create(model=os.environ["OPENAI_MODEL"], input=items, tools=[TOOL])
        items += [item.model_dump(exclude_none=True) for item in answer.output]
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            break
        for call in calls:
            ran += 1
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": "found"})
print(ran, answer.output_text)
