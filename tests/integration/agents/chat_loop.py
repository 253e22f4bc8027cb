"""An agent of OpenAI's SDK on chat completions, streamed. Prints the tools that it ran, and its answer."""

import json
import os
import sys
from typing import Any

import jsonschema
import openai

SEARCH: dict[str, Any] = {
    "type": "object",
    "properties": {"query": {"type": "string", "minLength": 2}, "limit": {"type": "integer", "minimum": 1}},
    "required": ["query", "limit"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "search", "parameters": SEARCH, "strict": True}}
model = os.environ["OPENAI_MODEL"] + "".join(sys.argv[1:])
messages: list[Any] = [{"role": "user", "content": "find it"}]
ran = 0
with openai.OpenAI(max_retries=8) as sdk:
    while True:
        with sdk.chat.completions.stream(model=model, messages=messages, tools=[TOOL]) as stream:
            answer = stream.get_final_completion().choices[0].message
        messages.append(answer.model_dump(exclude_none=True))
        if not answer.tool_calls:
            break
        for call in answer.tool_calls:
            jsonschema.validate(json.loads(call.function.arguments), SEARCH)
            ran += 1
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "found"})
print(ran, answer.content)
