"""A coding agent: many short answers over a context that each tool's output makes longer."""

from __future__ import annotations

import asyncio

from agentserving_cli.load.agent import Agent, text, user
from agentserving_cli.load.chatbot import FRAME_CHARS, MAX_CONTEXT_CHARS


async def coding(agent: Agent) -> None:
    """5 to 16 calls of some twenty tokens, over 1,000 to 6,000 tokens of context; tools take a fifth of a second."""
    history = [user(text(agent, agent.draw(6.9, 0.4, 500, 2000)))]
    for _ in range(agent.dice.randint(5, 16)):
        if sum(len(message["content"]) + FRAME_CHARS for message in history) > MAX_CONTEXT_CHARS:
            return
        answer = await agent.call(history, agent.draw(2.9, 0.5, 8, 40))
        history.append({"role": "assistant", "content": answer})
        await asyncio.sleep(agent.dice.uniform(0.1, 0.3))
        history.append(user(text(agent, agent.draw(5.3, 0.6, 40, 900))))
