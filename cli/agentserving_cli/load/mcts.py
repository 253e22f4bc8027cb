"""Monte Carlo tree search (LATS): rounds of parallel samples and parallel judgements."""

from __future__ import annotations

import asyncio

from agentserving_cli.load.agent import Agent, text, user


async def mcts(agent: Agent) -> None:
    """At most eight rounds; how soon a program finds its solution varies by program."""
    path = [user(text(agent, agent.draw(6.047, 0.45, 50, 900)))]
    solved = agent.dice.uniform(0.15, 0.6)
    for iteration in range(8):
        samples = await asyncio.gather(
            *(agent.call(path, agent.draw(4.136, 0.55, 8, 160), f"{iteration}-sample-{i}") for i in range(4))
        )
        await asyncio.gather(
            *(
                agent.call([*path, user(s[:150] + "?")], agent.draw(3.0, 0.4, 4, 40), f"{iteration}-judge-{i}")
                for i, s in enumerate(samples)
            )
        )
        path = [*path[:6], user(samples[0][:150])]
        if agent.dice.random() < solved:
            return
