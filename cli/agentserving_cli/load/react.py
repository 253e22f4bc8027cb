"""ReAct with tools (BFCL): a chain of thoughts with a short tool call after each."""

from __future__ import annotations

import asyncio

from agentserving_cli.load.agent import Agent, text, user


async def react(agent: Agent) -> None:
    """Three steps or more, seven on average."""
    history = [user(text(agent, agent.draw(6.477, 0.5, 50, 1500)))]
    for step in range(max(3, round(agent.dice.gauss(7, 2)))):
        thought = await agent.call(history, agent.draw(3.353, 0.6, 4, 128))
        history.append({"role": "assistant", "content": thought[:200]})
        await asyncio.sleep(agent.dice.uniform(0.02, 0.15))
        history.append(user(f"tool result {step}: {text(agent, 40)}"))
