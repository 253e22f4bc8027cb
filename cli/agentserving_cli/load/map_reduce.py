"""Map-reduce: parts of a document in parallel, then one call over all."""

from __future__ import annotations

import asyncio

from agentserving_cli.load.agent import Agent, text, user


async def map_reduce(agent: Agent) -> None:
    width = agent.dice.randint(3, 6)
    document = [text(agent, agent.draw(6.0, 0.5, 50, 900)) for _ in range(width)]
    parts = await asyncio.gather(
        *(agent.call([user(part)], agent.draw(4.1, 0.5, 8, 200), f"map-{i}") for i, part in enumerate(document))
    )
    await agent.call([user("\n".join(part[:300] for part in parts))], agent.draw(4.8, 0.5, 16, 300), "reduce")
