"""A conversation (ShareGPT): each turn sends the whole history."""

from __future__ import annotations

from agentserving_cli.load.agent import Agent, text, user

# The tiny model's context is 8192 tokens of one byte each, output included.
MAX_CONTEXT_CHARS = 6000
FRAME_CHARS = 12  # role, colon, newline


async def chatbot(agent: Agent) -> None:
    """1 to 80 turns, long-tailed: a quarter has one turn, one in a hundred over fifty (calibrated to the paper)."""
    history: list[dict[str, str]] = []
    for _ in range(max(1, min(80, round(agent.dice.lognormvariate(1.153, 1.22))))):
        history.append(user(text(agent, agent.draw(4.375, 1.6, 4, 2000))))
        while sum(len(message["content"]) + FRAME_CHARS for message in history) > MAX_CONTEXT_CHARS:
            # Drop more than half: then the prefix stays the same for many turns.
            history = history[-(len(history) // 4) * 2 - 1 :]
        answer = await agent.call(history, agent.draw(5.152, 1.0, 4, 2048))
        history.append({"role": "assistant", "content": answer})
