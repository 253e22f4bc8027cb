"""A conversation (ShareGPT): each turn sends all before it."""

from __future__ import annotations

from examples.agent import Agent, text, user

# The tiny model reads 8192 tokens of one byte each: leave room for what it writes.
MAX_CONTEXT_CHARS = 6000


async def chatbot(agent: Agent) -> None:
    """A conversation: each turn sends all before it."""
    history: list[dict[str, str]] = []
    turns = max(1, min(12, round(agent.dice.lognormvariate(1.153, 1.0))))
    for _ in range(turns):
        history.append(user(text(agent, agent.draw(4.375, 1.2, 4, 800))))
        answer = await agent.call(history, agent.draw(5.152, 1.0, 4, 512))
        history.append({"role": "assistant", "content": answer[:400]})
        if sum(len(m["content"]) for m in history) > MAX_CONTEXT_CHARS:
            return
