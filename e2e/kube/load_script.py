"""Runs in the agents' pod: URL AGENTS MAX_TOKENS. Calls until its input ends, then prints the results.

Of three calls of a program the second one is not streamed.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from collections import Counter

import aiohttp

STARTED = time.monotonic()
CALL_ID = "x-agentserving-call-id"


async def call(
    session: aiohttp.ClientSession, url: str, program: str, max_tokens: int, stream: bool
) -> tuple[str, bool]:
    """(Error, empty when the response was complete; whether a control plane admitted the call)."""
    body = {
        "model": "tiny", "stream": stream, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "Think about it. " * 20}],
    }  # fmt: skip
    try:
        async with session.post(
            f"{url}/chat/completions", json=body, headers={"x-agentserving-program-id": program}
        ) as answer:
            text, managed = await answer.text(), CALL_ID in answer.headers
            if answer.status != 200:
                return f"HTTP {answer.status}: {text[:200]}", managed
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return f"{type(error).__name__}: {error}", False
    if not stream:
        reason = json.loads(text)["choices"][0]["finish_reason"]
        return _unless_finished(reason), managed
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        return f"the stream broke off after {len(events)} events", managed
    return _unless_finished(json.loads(events[-2])["choices"][0]["finish_reason"]), managed


def _unless_finished(reason: str) -> str:
    return "" if reason in ("length", "stop") else f"finish_reason {reason}"


async def main() -> None:
    url, agents, max_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    stopping, first = asyncio.Event(), asyncio.Event()
    calls, slowest_s, failures, unmanaged = 0, 0.0, list[str](), list[tuple[float, float]]()
    answered = Counter[str]()

    async def agent(session: aiohttp.ClientSession) -> None:
        nonlocal calls, slowest_s
        while not stopping.is_set():
            program = f"load-{uuid.uuid4().hex[:12]}"
            for number in range(3):
                began = time.monotonic()
                wrong, managed = await call(session, url, program, max_tokens, number != 1)
                took_s = time.monotonic() - began
                calls, slowest_s = calls + 1, max(slowest_s, took_s)
                answered[program] += managed and not wrong
                if wrong:
                    failures.append(f"{began - STARTED:.2f} s: {wrong}")
                elif not managed:
                    unmanaged.append((round(began - STARTED, 2), round(took_s, 2)))
                first.set()
                if stopping.is_set():
                    return

    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, sys.stdin.read).add_done_callback(lambda _: stopping.set())
    timeout, key = aiohttp.ClientTimeout(total=60), os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        tasks = [asyncio.create_task(agent(session)) for _ in range(agents)]
        await first.wait()
        print("running", flush=True)
        await asyncio.gather(*tasks)
    result = {"calls": calls, "unmanaged": unmanaged, "failures": failures, "slowest_s": round(slowest_s, 2)}
    print(json.dumps({**result, "answered": answered}), flush=True)


asyncio.run(main())
