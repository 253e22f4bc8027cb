"""The plain OpenAI SDK with the client library, which gives the cluster more than headers can.

    export OPENAI_BASE_URL=... OPENAI_API_KEY=... AGENTSERVING_CONTROL_PLANE=...       # `agentserving up` prints them
    python -m examples.with_client

The calls below do not mention programs. The library derives from the tasks that they belong to one program, that the
reviews are parallel and follow the draft, and that the revision follows both. The named critic is a thread of its own,
the sub-agent a child program. Engines learn of tool waits: for how long the program's KV is worth keeping.
"""

from __future__ import annotations

import asyncio
import os

import agentserving
import openai


async def ask(sdk: openai.AsyncOpenAI, question: str) -> str:
    """One LLM call."""
    model = os.environ.get("MODEL") or (await sdk.models.list()).data[0].id
    answer = await sdk.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=40
    )
    return answer.choices[0].message.content or ""


async def search(query: str) -> str:
    """A slow tool."""
    await asyncio.sleep(0.2)
    return f"three results on {query}"


async def research(sdk: openai.AsyncOpenAI, topic: str) -> str:
    """A sub-agent: inside another program it becomes its child."""
    async with agentserving.program("research") as p:
        query = await ask(sdk, f"What should we look up about {topic}?")
        async with p.tool_wait("search", expected_s=0.2):
            found = await search(query)
        return await ask(sdk, f"Sum up: {found}")


async def write(topic: str) -> str:
    """Draft, review from two sides, criticise, revise."""
    async with openai.AsyncOpenAI() as sdk, agentserving.program("write") as p:
        draft = await ask(sdk, f"Draft a page on {topic} from {await research(sdk, topic)}")
        reviews = await asyncio.gather(*(ask(sdk, f"Review for {side}: {draft}") for side in ("truth", "style")))
        with p.thread("critic"):
            verdict = await ask(sdk, f"Weigh these reviews: {reviews}")
        print(f"program {p.program_id}: see `agentserving get {p.program_id}`")
        return await ask(sdk, f"Revise the draft: {draft} {verdict}")


if __name__ == "__main__":
    agentserving.instrument()
    asyncio.run(write("queues"))
