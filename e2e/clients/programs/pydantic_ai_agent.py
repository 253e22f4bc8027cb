"""Pydantic AI."""

from collections.abc import Callable

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from shared import MODEL, main


def answer(prompt: str, tool: Callable[[str], str]) -> str:
    """The run's output."""
    return Agent(OpenAIChatModel(MODEL), tools=[tool], instructions="Be brief.").run_sync(prompt).output


main(answer)
