"""Google's Agent Development Kit, with LiteLLM."""

import asyncio
from collections.abc import Callable

from google.adk.agents import LlmAgent
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai.types import Content, Part
from shared import BASE_URL, KEY, MODEL, main


async def run(prompt: str, tool: Callable[[str], str]) -> str:
    """The text of the last event."""
    model = LiteLlm(model=f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY)
    agent = LlmAgent(name="assistant", model=model, instruction="Be brief.", tools=[tool])
    runner = InMemoryRunner(agent=agent, app_name="weather")
    session = await runner.session_service.create_session(app_name="weather", user_id="me")
    message, text = Content(role="user", parts=[Part(text=prompt)]), ""
    async for event in runner.run_async(user_id="me", session_id=session.id, new_message=message):
        text = "".join(part.text or "" for part in (event.content.parts or [])) if event.content else text
    return text


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """In an event loop of its own."""
    return asyncio.run(run(prompt, tool))


main(answer)
