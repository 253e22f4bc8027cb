"""The same plain OpenAI SDK, with the client library: what it can say that headers alone do not.

    export OPENAI_BASE_URL=... OPENAI_API_KEY=none AGENTSERVING_CONTROL_PLANE=...       # `agentserving up` prints them
    python -m examples.with_client

The calls below say nothing of programs. That they are one, that the reviews are parallel and come after the draft, that
the revision comes after both: the library reads it off the tasks. A critic with a name is a thread of its own, a
sub-agent a program of its own under this one, and the engines know that nobody computes while a tool does.
"""

from __future__ import annotations

import asyncio

import agentserving
import openai

MODEL = "tiny"


async def ask(sdk: openai.AsyncOpenAI, question: str) -> str:
    """One LLM call."""
    answer = await sdk.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": question}], max_tokens=40
    )
    return answer.choices[0].message.content or ""


async def search(query: str) -> str:
    """A tool; it takes a while."""
    await asyncio.sleep(0.2)
    return f"three results on {query}"


async def research(sdk: openai.AsyncOpenAI, topic: str) -> str:
    """A sub-agent: inside of another program it is that one's child."""
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
